//! What is predicted to move between devices is what moves.

mod support;

use dsv3_deepseek::{
    HfConfig, Model, ModelConfig, PlannedChunk, PlannedCollective, PlannedStep, planned_collectives,
};
use dsv3_mesh::{Axis, Collective, ExpertSharding, Layout, Moved, Traffic};
use dsv3_runtime::{DecodeStep, LogitRows, Module, PrefillStep, Prefix};
use support::{
    mesh::{Place, Ranks},
    shapes::{Subject, subjects, text},
    stages::{PAGE_SIZE, Stages},
};

const MESHES: [&str; 5] = ["1x1", "1x2", "2x1", "2x2", "2x4"];
const CHUNK: usize = 13;

/// What one rank sent and received in a step, and what was predicted.
struct Found {
    moved: Traffic,
    planned: Vec<PlannedCollective>,
}

impl Found {
    /// What moved and what was to move in one collective.
    fn of(&self, collective: Collective) -> [Moved; 2] {
        let planned = self.planned.iter().filter(|planned| planned.collective == collective);
        [self.moved.of(collective), planned.map(PlannedCollective::moved_in_all).sum()]
    }
}

/// A config whose collectives are as `change` makes them in its JSON.
fn changed(config: &ModelConfig, change: [&str; 2]) -> ModelConfig {
    serde_json::from_str(&serde_json::to_string(config).unwrap().replace(change[0], change[1])).unwrap()
}

/// Chunks of a sequence that the last row caches, and a step of three users on the rows.
fn steps(hf: &HfConfig, stages: &Stages<Model>, place: Place, configs: &[ModelConfig; 2]) -> Vec<Found> {
    let mesh = stages.run.device().mesh();
    let at = (mesh.shape(), mesh.rank());
    let [prefill, decode] = configs;
    let mut state = stages.state();
    let mut found = Vec::new();
    let pages = stages.prefill_step(0).pages;
    for (start, logits) in [(0, LogitRows::None), (CHUNK, LogitRows::Last), (2 * CHUNK, LogitRows::All)] {
        let before = mesh.traffic();
        let step = PrefillStep::new(start, pages, logits).on_row(place.rows - 1);
        let mut run = stages.run.prefill(&mut state);
        run.cfg = prefill;
        Model::forward_prefill(&text(hf, CHUNK), &step, run).unwrap();
        // The state of the tests caches in f32.
        let context = start.next_multiple_of(PAGE_SIZE) * hf.attention.latent_dim() * 4;
        let chunk =
            PlannedChunk { tokens: CHUNK, logits, row: place.rows - 1, context_bytes: context as u64 };
        let planned = planned_collectives(hf, prefill, at, PlannedStep::Prefill(chunk));
        found.push(Found { moved: mesh.traffic() - before, planned });
    }
    let rows: Vec<_> = (0..3).map(|user| (user + 1) % place.rows).collect();
    let users: Vec<_> = (0..place.rows).map(|row| rows.iter().filter(|&&of| of == row).count()).collect();
    let tables: Vec<_> = (0..3).map(|user| &pages[user..=user]).collect();
    let before = mesh.traffic();
    let mut run = stages.run.decode(&mut state);
    run.cfg = decode;
    let step = DecodeStep::new(&[0, 1, 2], &tables).on_rows(&rows);
    Model::forward_decode(&text(hf, 3), &step, run).unwrap();
    let planned = planned_collectives(hf, decode, at, PlannedStep::Decode(&users));
    found.push(Found { moved: mesh.traffic() - before, planned });
    found
}

/// All ranks' steps; none where the model does not divide.
fn run(subject: &Subject, layout: Layout, change: [&str; 2]) -> Option<Vec<Found>> {
    let hf = &subject.hf;
    let ranks = Ranks::<Model>::new(layout, &subject.checkpoint, hf, &Prefix::root()).ok()?;
    let prefill = Model::prefill_model_config(hf, layout).unwrap();
    let decode = Model::decode_model_config(hf, layout).unwrap();
    let configs = &[prefill, decode].map(|config| changed(&config, change));
    let found = ranks.each(|stages, place| steps(hf, stages, place, configs));
    Some(found.into_iter().flatten().collect())
}

/// Tokens and their sums travel as often as is to be expected of random choices, within five standard deviations.
fn assert_visits_are_likely(subject: &Subject, layout: Layout, all: &[Found]) {
    let hf = &subject.hf;
    let sum = |[moved, planned]: [Moved; 2], found: &Found| {
        let [more, also] = found.of(Collective::AllToAll);
        [moved + more, planned + also]
    };
    let [moved, planned] = all.iter().fold([Moved::default(); 2], sum);
    if planned.sent == 0 {
        return assert_eq!(moved.sent, 0, "{} on {layout}", subject.name);
    }
    // There and back.
    let bytes = 4 * 2 * (hf.hidden_size + hf.moe().experts_per_token);
    let [visits, expected] = [moved, planned].map(|moved| moved.sent as f64 / bytes as f64);
    let [rows, columns] = [Axis::Rows, Axis::Columns].map(|axis| layout.mesh.size(axis));
    let tokens = (3 * CHUNK + 3) * (hf.num_hidden_layers - hf.first_k_dense_replace);
    // Each token may go to a device of each other row, in each column.
    let possible = (tokens * (rows - 1) * columns) as f64;
    let deviation = (expected * (1.0 - expected / possible)).sqrt();
    let name = format!("{} on {layout}: {visits} of {possible}, expected {expected}", subject.name);
    assert!((visits - expected).abs() <= 5.0 * deviation + 1.0, "{name}");
}

#[test]
fn what_moves_is_what_was_planned() {
    for subject in &subjects() {
        let mut count = 0;
        for mesh in MESHES {
            for experts in [ExpertSharding::Tensor, ExpertSharding::Expert] {
                let layout = Layout { mesh: mesh.parse().unwrap(), experts };
                let Some(all) = run(subject, layout, ["", ""]) else { continue };
                count += 1;
                for found in &all {
                    for collective in Collective::EACH {
                        let [moved, planned] = found.of(collective);
                        let name = format!("{} on {layout}: {collective}", subject.name);
                        match collective {
                            // Where tokens go depends on their choices.
                            Collective::AllToAll => assert_eq!(moved.exchanges, planned.exchanges, "{name}"),
                            _ => assert_eq!(moved, planned, "{name}"),
                        }
                    }
                }
                assert_visits_are_likely(subject, layout, &all);
            }
        }
        assert!(count == 2 * MESHES.len() || subject.name != "tiny", "{count} layouts");
    }
}

#[test]
fn other_configs_move_what_they_say() {
    let subject = subjects().into_iter().find(|subject| subject.name == "tiny").unwrap();
    let layout = Layout::from("2x4".parse::<dsv3_mesh::MeshShape>().unwrap());
    let sent = |change| {
        let all = run(&subject, layout, change).unwrap();
        for found in &all {
            for collective in Collective::EACH {
                let [moved, planned] = found.of(collective);
                assert_eq!(moved, planned, "{change:?} {collective}");
            }
        }
        all.iter().map(|found| found.moved.total().sent).sum::<u64>()
    };
    let exact = sent(["", ""]);
    let halves = sent([r#""payload":"f32""#, r#""payload":"bf16""#]);
    let blocks = sent([r#""payload":"f32""#, r#""payload":"bf8""#]);
    assert!(blocks < halves && halves < exact, "{exact} {halves} {blocks}");
    assert_eq!(sent([r#""topology":"direct""#, r#""topology":"ring""#]), exact);
}
