//! One model on many ranks: rank 0 decides each step, all ranks run it, and the logits are rank 0's to use.
//!
//! [`Leader`] is what rank 0's code runs: it sends every step to the [followers](follow), and then takes part itself.
//! What the ranks exchange inside a step is the model's own business.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use dsv3_mesh::{Group, Mesh, Rank};
use dsv3_runtime::{DecodeStep, LogitRows, PageId, PrefillStep, Tensor, TokenId};
use serde::{Deserialize, Serialize};

use crate::{ChosenExperts, LanguageModel, ModelLimits};

/// The rank that decides.
pub const LEADER: Rank = Rank(0);

/// What rank 0 tells all others.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Message {
    Prefill {
        tokens: Vec<TokenId>,
        start: usize,
        pages: Vec<PageId>,
        logits: Rows,
        row: usize,
    },
    Decode {
        tokens: Vec<TokenId>,
        positions: Vec<usize>,
        pages: Vec<Vec<PageId>>,
        rows: Vec<usize>,
    },
    CopyPage {
        row: usize,
        from: PageId,
        to: PageId,
    },
    /// Nothing to do, but still there.
    Idle,
    /// Nothing more to do.
    End,
}

impl Message {
    fn prefill(tokens: &[TokenId], step: &PrefillStep<'_>) -> Self {
        Self::Prefill {
            tokens: tokens.to_vec(),
            start: step.start,
            pages: step.pages.to_vec(),
            logits: step.logits.into(),
            row: step.row,
        }
    }

    fn decode(tokens: &[TokenId], step: &DecodeStep<'_>) -> Self {
        Self::Decode {
            tokens: tokens.to_vec(),
            positions: step.positions.to_vec(),
            pages: step.pages.iter().map(|pages| pages.to_vec()).collect(),
            rows: step.rows.to_vec(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a message is made of numbers and lists")
    }
}

/// Bytes of what the leader sends each follower before a chunk.
pub fn prefill_message_bytes(tokens: &[TokenId], step: &PrefillStep<'_>) -> u64 {
    Message::prefill(tokens, step).bytes().len() as u64
}

/// Bytes of what the leader sends each follower before a decode step.
pub fn decode_message_bytes(tokens: &[TokenId], step: &DecodeStep<'_>) -> u64 {
    Message::decode(tokens, step).bytes().len() as u64
}

/// [`LogitRows`], as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Rows {
    None,
    Last,
    All,
}

impl From<LogitRows> for Rows {
    fn from(rows: LogitRows) -> Self {
        match rows {
            LogitRows::None => Self::None,
            LogitRows::Last => Self::Last,
            LogitRows::All => Self::All,
        }
    }
}

impl From<Rows> for LogitRows {
    fn from(rows: Rows) -> Self {
        match rows {
            Rows::None => Self::None,
            Rows::Last => Self::Last,
            Rows::All => Self::All,
        }
    }
}

/// Rank 0's share of a model, as the whole model. On a mesh of one it is just that.
///
/// Between steps a thread tells the followers every second that rank 0 is there: it may wait for as long as it likes, for
/// a user or for whoever reads its output, and one that is cut off is still found out. Dropping it lets the followers
/// end.
pub struct Leader<M> {
    model: M,
    mesh: Mesh,
    /// None where there are no followers.
    heartbeat: Option<Heartbeat>,
}

impl<M> Leader<M> {
    /// Leads the mesh with this rank's share of the model.
    ///
    /// # Panics
    /// On another rank than 0.
    pub fn new(model: M, mesh: Mesh) -> Self {
        assert_eq!(mesh.rank(), LEADER, "the rank that leads");
        let heartbeat = (mesh.shape().devices() > 1).then(|| Heartbeat::start(mesh.clone()));
        Self { model, mesh, heartbeat }
    }

    /// This rank's share.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// This rank's view of the mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }
}

/// Speaks to the followers while the leader has no step for them.
struct Heartbeat {
    /// When they last heard of the leader. Held by whoever speaks to them, through a whole step.
    heard: Arc<Mutex<Instant>>,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Heartbeat {
    /// The longest silence: several of these fit into the time after which the followers give up.
    fn interval(mesh: &Mesh) -> Duration {
        (mesh.timeout() / 4).min(Duration::from_secs(1))
    }

    fn start(mesh: Mesh) -> Self {
        let heard = Arc::new(Mutex::new(Instant::now()));
        let (stop, stopped) = mpsc::channel();
        let interval = Self::interval(&mesh);
        let beat = {
            let heard = Arc::clone(&heard);
            move || {
                while stopped.recv_timeout(interval) == Err(mpsc::RecvTimeoutError::Timeout) {
                    // Else a step is under way.
                    let Ok(mut heard) = heard.try_lock() else { continue };
                    if heard.elapsed() >= interval {
                        if tell(&mesh, &Message::Idle).is_err() {
                            return;
                        }
                        *heard = Instant::now();
                    }
                }
            }
        };
        Self { heard, stop, thread: thread::spawn(beat) }
    }

    /// Nothing is told beside a step.
    fn pause(&self) -> Turn<'_> {
        Turn(self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(self) {
        drop(self.stop);
        // It panics where the leader itself does.
        let _ = self.thread.join();
    }
}

/// A step's turn to speak. Its end is when the followers last heard of the leader.
struct Turn<'a>(MutexGuard<'a, Instant>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0 = Instant::now();
    }
}

/// Sends a message to all followers.
fn tell(mesh: &Mesh, message: &Message) -> Result<(), dsv3_runtime::Error> {
    let told = mesh.broadcast(Some(message.bytes()), LEADER, Group::All);
    checked(mesh, told.map(|_| ()).map_err(Into::into))
}

/// Ends the job where another rank is the cause of an error: those that are left must not wait for each other, and one
/// of them is to say why.
fn checked<T>(mesh: &Mesh, result: Result<T, dsv3_runtime::Error>) -> Result<T, dsv3_runtime::Error> {
    if let Err(dsv3_runtime::Error::Transport(error)) = &result {
        mesh.abort_because(error.clone());
    }
    result
}

impl<M: LanguageModel> LanguageModel for Leader<M> {
    fn limits(&self) -> ModelLimits {
        self.model.limits()
    }

    fn forward_prefill(
        &mut self,
        tokens: &[TokenId],
        step: &PrefillStep<'_>,
    ) -> Result<Tensor, dsv3_runtime::Error> {
        let turn = self.heartbeat.as_ref().map(Heartbeat::pause);
        if turn.is_some() {
            tell(&self.mesh, &Message::prefill(tokens, step))?;
        }
        let result = self.model.forward_prefill(tokens, step);
        checked(&self.mesh, result)
    }

    fn forward_decode(
        &mut self,
        tokens: &[TokenId],
        step: &DecodeStep<'_>,
    ) -> Result<Tensor, dsv3_runtime::Error> {
        let turn = self.heartbeat.as_ref().map(Heartbeat::pause);
        if turn.is_some() {
            tell(&self.mesh, &Message::decode(tokens, step))?;
        }
        let result = self.model.forward_decode(tokens, step);
        checked(&self.mesh, result)
    }

    fn copy_page(&mut self, row: usize, from: PageId, to: PageId) -> Result<(), dsv3_runtime::Error> {
        let turn = self.heartbeat.as_ref().map(Heartbeat::pause);
        if turn.is_some() {
            tell(&self.mesh, &Message::CopyPage { row, from, to })?;
        }
        self.model.copy_page(row, from, to)
    }

    /// Of what its row ran.
    fn take_chosen_experts(&mut self) -> Option<ChosenExperts> {
        self.model.take_chosen_experts()
    }

    /// None where other ranks have parts of it.
    fn page_bytes(&self) -> Option<usize> {
        self.model.page_bytes().filter(|_| self.heartbeat.is_none())
    }

    fn read_page(&mut self, page: PageId, out: &mut Vec<u8>) -> Result<(), dsv3_runtime::Error> {
        self.model.read_page(page, out)
    }

    fn write_page(&mut self, page: PageId, bytes: &[u8]) -> Result<(), dsv3_runtime::Error> {
        self.model.write_page(page, bytes)
    }
}

impl<M> Drop for Leader<M> {
    fn drop(&mut self) {
        let Some(heartbeat) = self.heartbeat.take() else { return };
        heartbeat.end();
        // In a panic they learn of that instead. Where they cannot be told, they have ended already.
        if !thread::panicking() {
            let _ = tell(&self.mesh, &Message::End);
        }
    }
}

/// Runs every step that the leader sends, until it ends.
///
/// # Errors
/// If the leader is gone, or a step fails.
pub fn follow(model: &mut impl LanguageModel, mesh: &Mesh) -> Result<(), dsv3_runtime::Error> {
    loop {
        let bytes = mesh.broadcast(None, LEADER, Group::All)?;
        let message = postcard::from_bytes(&bytes)
            .map_err(|error| dsv3_runtime::Error::Request(format!("a step that is none came: {error}")))?;
        match message {
            Message::Prefill { tokens, start, pages, logits, row } => {
                let step = PrefillStep::new(start, &pages, logits.into()).on_row(row);
                model.forward_prefill(&tokens, &step)?;
            }
            Message::Decode { tokens, positions, pages, rows } => {
                let pages: Vec<_> = pages.iter().map(|pages| &pages[..]).collect();
                let step = DecodeStep::new(&positions, &pages).on_rows(&rows);
                model.forward_decode(&tokens, &step)?;
            }
            Message::CopyPage { row, from, to } => model.copy_page(row, from, to)?,
            Message::Idle => {}
            Message::End => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use dsv3_runtime::Error;

    use super::*;
    use crate::{
        GenerationConfig, Generator, Request,
        testing::{FakeModel, VOCAB_SIZE, one_hot, tokenizer},
    };

    const LIMITS: ModelLimits =
        ModelLimits { vocab_size: VOCAB_SIZE, max_context: 64, page_size: 4, page_count: 16, rows: 2 };

    /// Counts up from the last token.
    fn model() -> FakeModel<impl FnMut(&[TokenId]) -> Vec<f32>> {
        FakeModel::new(LIMITS, |tokens| one_hot(TokenId(tokens[tokens.len() - 1].0 + 1)))
    }

    #[test]
    fn followers_run_every_step_of_the_leader() {
        let mut meshes = Mesh::threads("2x2".parse().unwrap());
        let leader = meshes.remove(0);
        thread::scope(|scope| {
            let followers: Vec<_> = meshes
                .into_iter()
                .map(|mesh| {
                    scope.spawn(move || {
                        let mut model = model();
                        follow(&mut model, &mesh).unwrap();
                        (model.prefills, model.decodes, model.cache)
                    })
                })
                .collect();
            let mut leader = Leader::new(model(), leader);
            let request = Request::new(&GenerationConfig::default(), tokenizer(), 0, 5).unwrap();
            let mut generator = Generator::new(&mut leader, tokenizer(), 3).unwrap();
            let prompt: Vec<_> = (70..75).map(TokenId).collect();
            let generation = generator.generate(&prompt, &request, |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(generation.tokens, (75..80).map(TokenId).collect::<Vec<_>>());
            drop(generator);
            leader.copy_page(0, PageId(0), PageId(9)).unwrap();
            assert_eq!(leader.page_bytes(), None, "others have parts of it");
            let FakeModel { prefills, decodes, cache, .. } = &leader.model;
            let own = (prefills.clone(), *decodes, cache.clone());
            assert_eq!((own.1, own.2[&(0, PageId(9), 0)]), (4, TokenId(70)));
            drop(leader);
            for follower in followers {
                assert_eq!(follower.join().unwrap(), own);
            }
        });
    }

    #[test]
    fn a_follower_that_fails_ends_the_leader() {
        let mut meshes = Mesh::threads("1x2".parse().unwrap());
        let (follower, leader) = (meshes.remove(1), meshes.remove(0));
        thread::scope(|scope| {
            scope.spawn(move || {
                let failing = &mut Failing;
                let error = follow(failing, &follower).unwrap_err();
                follower.abort(&error.to_string());
            });
            let mut leader = Leader::new(model(), leader);
            let step = PrefillStep::new(0, &[PageId(0)], LogitRows::Last);
            leader.forward_prefill(&[TokenId(1)], &step).unwrap();
            // The follower may not have come to its step yet.
            let error = loop {
                match leader.forward_prefill(&[TokenId(1)], &step) {
                    Ok(_) => thread::sleep(Duration::from_millis(1)),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.to_string(), "rank 1 failed: out of order");
        });
    }

    #[test]
    fn a_leader_that_waits_for_others_than_its_followers_is_not_given_up() {
        let timeout = Duration::from_millis(200);
        let mut meshes = Mesh::threads("1x2".parse().unwrap()).into_iter().map(|it| it.with_timeout(timeout));
        let (leader, follower) = (meshes.next().unwrap(), meshes.next().unwrap());
        thread::scope(|scope| {
            let follower = scope.spawn(move || follow(&mut model(), &follower));
            let mut leader = Leader::new(model(), leader);
            let step = PrefillStep::new(0, &[PageId(0)], LogitRows::Last);
            for _ in 0..2 {
                thread::sleep(3 * timeout);
                leader.forward_prefill(&[TokenId(1)], &step).unwrap();
            }
            drop(leader);
            follower.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_panic_of_either_side_ends_the_other() {
        let panicked = |rank: usize| format!("rank {rank} panicked");
        let mut meshes = Mesh::threads("1x2".parse().unwrap());
        let (follower, leader) = (meshes.remove(1), meshes.remove(0));
        thread::scope(|scope| {
            let follower = scope.spawn(move || follow(&mut model(), &follower));
            let leader = scope.spawn(move || {
                let _leader = Leader::new(model(), leader);
                panic!("as asked");
            });
            leader.join().unwrap_err();
            assert_eq!(follower.join().unwrap().unwrap_err().to_string(), panicked(0));
        });
        let mut meshes = Mesh::threads("1x2".parse().unwrap());
        let (follower, leader) = (meshes.remove(1), meshes.remove(0));
        thread::scope(|scope| {
            let follower = scope.spawn(move || {
                let _mesh = follower;
                panic!("as asked");
            });
            let mut leader = Leader::new(model(), leader);
            follower.join().unwrap_err();
            let step = PrefillStep::new(0, &[PageId(0)], LogitRows::Last);
            let error = leader.forward_prefill(&[TokenId(1)], &step).unwrap_err();
            assert_eq!(error.to_string(), panicked(1));
        });
    }

    struct Failing;

    impl LanguageModel for Failing {
        fn limits(&self) -> ModelLimits {
            LIMITS
        }

        fn forward_prefill(&mut self, _: &[TokenId], _: &PrefillStep<'_>) -> Result<Tensor, Error> {
            Err(Error::Request("out of order".to_owned()))
        }

        fn forward_decode(&mut self, _: &[TokenId], _: &DecodeStep<'_>) -> Result<Tensor, Error> {
            Err(Error::Request("out of order".to_owned()))
        }

        fn copy_page(&mut self, _: usize, _: PageId, _: PageId) -> Result<(), Error> {
            Err(Error::Request("out of order".to_owned()))
        }
    }
}
