//! One model on meshes of several devices: in one process, and in the processes of an MPI job where this binary has MPI.

mod support;

use support::{Workplace, floats, testdata, tiny, token_ids};

const MESHES: [&str; 6] = ["1x2", "2x1", "2x2", "2x4", "8x1", "4x8"];
const QUESTION: [&str; 2] = ["What is 27 + 58?", "What is 12 * 3?"];

fn generate(mesh: &str, experts: &str) -> Vec<String> {
    let fixed = ["generate", "--mesh", mesh, "--experts", experts, "--temperature", "0", "--json"];
    let exact = ["--kv-cache", "f32", "--arithmetic", "float", "--threads", "1"];
    fixed.into_iter().chain(exact).chain(QUESTION).map(str::to_owned).collect()
}

/// The token ids of each line of `--json`.
fn tokens(stdout: &str) -> Vec<Vec<u32>> {
    stdout.lines().map(|line| token_ids(&serde_json::from_str(line).unwrap())).collect()
}

#[test]
fn tokens_are_the_same_on_every_mesh() {
    let place = Workplace::new();
    let expected = tokens(&place.run(generate("1x1", "tensor")).success().stdout);
    assert_eq!(expected.len(), QUESTION.len());
    for mesh in MESHES {
        for experts in ["tensor", "expert"] {
            let run = place.run(generate(mesh, experts)).success();
            assert_eq!(tokens(&run.stdout), expected, "{mesh} {experts}");
            assert!(run.stderr.contains(&format!("{mesh} devices of 1 thread")), "{}", run.stderr);
        }
    }
}

#[test]
fn weights_may_be_copied_and_devices_found() {
    let place = Workplace::new();
    let expected = tokens(&place.run(generate("1x1", "tensor")).success().stdout);
    for mesh in ["1x1", "1x2"] {
        let args = generate(mesh, "tensor").into_iter().chain(["--copy-weights".to_owned()]);
        assert_eq!(tokens(&place.run(args).success().stdout), expected, "{mesh}");
    }
    let run = place.run(generate("auto", "tensor")).success();
    assert_eq!(tokens(&run.stdout), expected);
    // One for each NUMA node; most machines have one.
    assert!(run.stderr.contains("one NUMA node") || run.stderr.contains("devices of"), "{}", run.stderr);
    place.run(["generate", "--copy-weights", "--mlock", "hi"]).is_usage_error("--mlock");
}

#[test]
fn logits_are_those_of_one_device() {
    let place = Workplace::new();
    let ids = place.file("ids.json", format!("{:?}", (2..60).collect::<Vec<u32>>()));
    let logits = |mesh: &str| {
        let output = place.path(&format!("{mesh}.safetensors"));
        let args = ["logits", "--mesh", mesh, "--tokens"].map(AsRef::as_ref);
        place
            .run(args.into_iter().chain([ids.as_os_str(), "--output".as_ref(), output.as_os_str()]))
            .success();
        floats(&std::fs::read(output).unwrap(), "logits").1
    };
    let expected = logits("1x1");
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    for mesh in ["1x2", "2x2", "4x8"] {
        let got = logits(mesh);
        let difference = norm(&mut got.iter().zip(&expected).map(|(got, expected)| got - expected));
        let relative = difference / norm(&mut expected.iter().copied());
        assert!(relative <= 1e-5, "{mesh}: {relative:e}");
    }
}

#[test]
fn a_mesh_over_which_the_model_does_not_divide_is_refused_by_name() {
    let place = Workplace::new();
    let model = testdata("moonlight-bf16");
    let ids = place.file("ids.json", "[1, 2, 3]");
    let run = |mesh: &str| {
        let args = ["generate", "--mesh", mesh, "--model"].map(AsRef::as_ref);
        place.run(args.into_iter().chain([model.as_os_str(), "--token-ids".as_ref(), ids.as_os_str()]))
    };
    run("1x8").fails_with(&["num_attention_heads: 4 do not divide over 8 devices"]);
    place.run(["generate", "--mesh", "2", "hi"]).is_usage_error("a mesh is written RxC");
    place.run(["generate", "--experts", "some", "hi"]).is_usage_error("`tensor` or by `expert`");
}

#[test]
fn all_commands_that_run_a_model_run_it_on_a_mesh() {
    let place = Workplace::new();
    let text = tiny().join("heldout_stories.txt");
    let perplexity = |mesh: &str| {
        let args = [
            "eval",
            "perplexity",
            "--json",
            "--window",
            "64",
            "--max-windows",
            "2",
            "--mesh",
            mesh,
            "--text",
        ];
        let run = place.run(args.map(AsRef::as_ref).into_iter().chain([text.as_os_str()])).success();
        run.json()["perplexity"]["value"].as_f64().or_else(|| run.json()["perplexity"].as_f64())
    };
    let (one, four) = (perplexity("1x1").unwrap(), perplexity("2x2").unwrap());
    assert!((one / four - 1.0).abs() < 1e-5, "{one} {four}");
    let args = [
        "bench",
        "run",
        "--depths",
        "0",
        "--prompt",
        "16",
        "--generate",
        "4",
        "--batch",
        "1,3",
        "--repeat",
        "1",
    ];
    let run = place.run(args.into_iter().chain(["--mesh", "2x2", "--json"])).success();
    assert_eq!(run.json()["measurements"].as_array().unwrap().len(), 3, "{}", run.stdout);
}

#[test]
fn a_process_of_a_job_says_what_it_was_built_without() {
    let place = Workplace::new();
    let mut command = place.command(["generate", "--mesh", "1x2", "hi"]);
    command.env("OMPI_COMM_WORLD_SIZE", "2").env("OMPI_COMM_WORLD_RANK", "0");
    if !cfg!(feature = "mpi") {
        support::Run::of(command.output().unwrap()).fails_with(&["one of 2", "--features mpi"]);
    }
    let mut command = place.command(["config", "--mesh", "1x2"]);
    command.env("OMPI_COMM_WORLD_SIZE", "2").env("OMPI_COMM_WORLD_RANK", "0");
    support::Run::of(command.output().unwrap()).fails_with(&["for one process"]);
}
