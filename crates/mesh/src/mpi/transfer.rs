//! Transfers that MPI has under way, together with the memory that it reads or writes meanwhile.
#![allow(unsafe_code)]

use super::connection::Address;
use crate::{Cause, view::View};
use mpi::ffi::{self, MPI_Request};
use std::{mem, ops::Range, ptr};

/// Bytes of one message: MPI counts in a C int.
const MESSAGE: usize = 1 << 30;

/// Messages under way, and their memory. What is dropped before its end leaves the memory to MPI for good.
pub(super) struct Transfer<M> {
    requests: Vec<MPI_Request>,
    /// None when it was taken out at the end.
    memory: Option<M>,
}

impl Transfer<View> {
    /// Sends the bytes of a contiguous view from `start` on.
    pub(super) fn send(to: Address, view: View, start: usize) -> Result<Self, Cause> {
        let mut transfer = Self { requests: Vec::new(), memory: Some(view) };
        let view = transfer.memory.as_ref().expect("put there");
        let bytes = &view.contiguous().expect("only contiguous views are sent")[start..];
        for range in messages(bytes.len()) {
            let message = &bytes[range];
            let mut request = null_request();
            // SAFETY: the message lies in a shared buffer that nobody writes to, and that the view in `transfer` keeps
            // where it is until MPI is done (see `done` and the drop). Its length fits a C int. The communicator is
            // that of a live connection, and the request is a place for the answer.
            let code = unsafe {
                ffi::MPI_Isend(
                    message.as_ptr().cast(),
                    message.len() as i32,
                    ffi::RSMPI_UINT8_T,
                    to.place,
                    to.tag,
                    to.communicator,
                    &raw mut request,
                )
            };
            check(code)?;
            transfer.requests.push(request);
        }
        Ok(transfer)
    }
}

impl Transfer<Vec<u8>> {
    /// Receives into `memory` from `start` on; a message may be shorter than what it holds.
    pub(super) fn receive(from: Address, memory: Vec<u8>, start: usize) -> Result<Self, Cause> {
        let mut transfer = Self { requests: Vec::new(), memory: Some(memory) };
        let bytes = &mut transfer.memory.as_mut().expect("put there")[start..];
        let ranges = messages(bytes.len());
        // One pointer for all messages, so that none of them is made from a reference to another's bytes.
        let first = bytes.as_mut_ptr();
        for range in ranges {
            let mut request = null_request();
            // SAFETY: the range is inside the vector, whose memory `transfer` keeps in place, unread and unwritten,
            // until MPI is done (see `done` and the drop). The ranges do not overlap. The rest as for a send.
            let code = unsafe {
                ffi::MPI_Irecv(
                    first.add(range.start).cast(),
                    range.len() as i32,
                    ffi::RSMPI_UINT8_T,
                    from.place,
                    from.tag,
                    from.communicator,
                    &raw mut request,
                )
            };
            check(code)?;
            transfer.requests.push(request);
        }
        Ok(transfer)
    }
}

impl<M> Transfer<M> {
    /// Whether all messages have gone or come.
    pub(super) fn done(&mut self) -> Result<bool, Cause> {
        while let Some(request) = self.requests.last_mut() {
            let mut done = 0;
            // SAFETY: the request is one that MPI gave and has not ended yet; the flag is a place for the answer,
            // and the status is not asked for.
            let code = unsafe { ffi::MPI_Test(request, &raw mut done, ffi::RSMPI_STATUS_IGNORE) };
            check(code)?;
            if done == 0 {
                return Ok(false);
            }
            self.requests.pop();
        }
        Ok(true)
    }

    /// The memory, when all is done.
    pub(super) fn into_memory(mut self) -> M {
        assert!(self.requests.is_empty(), "the memory of a transfer is MPI's until its end");
        self.memory.take().expect("taken once")
    }
}

impl<M> Drop for Transfer<M> {
    fn drop(&mut self) {
        if !self.requests.is_empty() {
            // MPI may still read or write it.
            mem::forget(self.memory.take());
        }
    }
}

/// The ranges of a view's bytes that go in a message each.
fn messages(length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length.div_ceil(MESSAGE)).map(move |index| index * MESSAGE..((index + 1) * MESSAGE).min(length))
}

fn null_request() -> MPI_Request {
    // SAFETY: reads a constant of the MPI library.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

fn check(code: i32) -> Result<(), Cause> {
    if code == ffi::MPI_SUCCESS as i32 {
        return Ok(());
    }
    let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: the text has as many bytes as MPI writes at most.
    unsafe { ffi::MPI_Error_string(code, ptr::from_mut(&mut text).cast(), &raw mut length) };
    let text = &text[..usize::try_from(length).unwrap_or(0).min(text.len())];
    Err(Cause::Broken(String::from_utf8_lossy(text).into_owned()))
}
