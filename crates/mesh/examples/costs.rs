//! Prints what each collective costs over a mesh: over threads, or over the processes of an MPI job.
//!
//! `cargo run --release -p dsv3-mesh --example costs -- 1x2`, and with the feature `mpi`,
//! `mpirun -n 2 target/release/examples/costs 1x2`.

use dsv3_mesh::{Collective, Group, Mesh, MeshShape, Rank, launched_processes, measure::cost};
use std::{env, error::Error, io::Write as _, thread, time::Duration};

/// What a rank may meet, on whatever thread.
type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let shape: MeshShape = env::args().nth(1).unwrap_or("1x2".to_owned()).parse()?;
    if shape == MeshShape::SINGLE {
        return Err("one device sends nothing".into());
    }
    if let Some(processes) = launched_processes() {
        return over_processes(shape, processes);
    }
    say(&format!("{shape} devices, threads of one process"))?;
    thread::scope(|scope| {
        let ranks: Vec<_> =
            Mesh::threads(shape).into_iter().map(|mesh| scope.spawn(move || print(&mesh))).collect();
        ranks.into_iter().try_for_each(|rank| rank.join().expect("a rank does not panic"))
    })
}

#[cfg(feature = "mpi")]
fn over_processes(shape: MeshShape, processes: usize) -> Result<(), Failure> {
    let mesh = Mesh::mpi(shape, Duration::from_secs(60))?;
    if mesh.rank() == Rank(0) {
        say(&format!("{shape} devices, {processes} processes over MPI"))?;
    }
    print(&mesh)
}

#[cfg(not(feature = "mpi"))]
fn over_processes(_: MeshShape, processes: usize) -> Result<(), Failure> {
    Err(format!("one of {processes} processes, but built without the feature mpi").into())
}

fn print(mesh: &Mesh) -> Result<(), Failure> {
    for collective in Collective::EACH {
        let cost = cost(mesh, collective, Group::All)?;
        if mesh.rank() == Rank(0) {
            let (time, bandwidth) = (1e6 * cost.seconds, cost.bytes_per_second / 1e9);
            say(&format!("{:<16}{time:8.1} us{bandwidth:8.2} GB/s sent by each", collective.to_string()))?;
        }
    }
    Ok(())
}

fn say(line: &str) -> std::io::Result<()> {
    std::io::stdout().write_all(format!("{line}\n").as_bytes())
}
