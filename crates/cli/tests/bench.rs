//! `dsv3 bench` over the embedded model, and the ways weights come into memory.

mod support;

use serde_json::Value;
use std::fs;
use support::{Run, Workplace, tiny};

const SHORT: [&str; 12] = [
    "bench",
    "run",
    "--depths",
    "0,70",
    "--prompt",
    "5",
    "--generate",
    "3",
    "--repeat",
    "2",
    "--threads",
    "1",
];

fn run(place: &Workplace, more: &[&str]) -> Run {
    place.run(SHORT.iter().chain(more)).success()
}

#[test]
fn a_run_measures_prefill_and_every_batch_at_every_depth() {
    let place = Workplace::new();
    let report = run(&place, &["--batch", "1,3", "--json"]).json();
    assert_eq!(report["kernels"], dsv3_runtime::Kernels::best().isa().name());
    assert_eq!(report["ceilings"][0]["threads"], 1);
    let measurements = report["measurements"].as_array().unwrap();
    let key = |found: &Value| {
        let number = |name: &str| found[name].as_u64().unwrap();
        (found["work"].as_str().unwrap().to_owned(), number("batch"), number("depth"))
    };
    let keys: Vec<_> = measurements.iter().map(key).collect();
    let expected = [("prefill", 1, 0), ("decode", 1, 0), ("decode", 3, 0)];
    let expected = expected.into_iter().chain([("prefill", 1, 70), ("decode", 1, 70), ("decode", 3, 70)]);
    assert_eq!(
        keys,
        expected.map(|(work, batch, depth)| (work.to_owned(), batch, depth)).collect::<Vec<_>>()
    );
    for found in measurements {
        let speed = |name: &str| found["tokens_per_second"][name].as_f64().unwrap();
        assert!(speed("min") > 0.0 && speed("min") <= speed("median") && speed("median") <= speed("max"));
        assert!(found["roofline"].as_f64().unwrap() > 0.0);
    }
    // A token of a batch shares the weights, and has a cache of its own.
    let bytes = |index: usize| measurements[index]["per_token"]["bytes"].as_f64().unwrap();
    assert!(bytes(2) < bytes(1) && bytes(4) > bytes(1));
}

#[test]
fn a_table_is_written_for_people_and_values_for_programs() {
    let place = Workplace::new();
    let one = ["bench", "run", "--depths", "0,70", "--repeat", "1", "--threads", "1"];
    let run = |more: &[&str]| place.run(one.iter().chain(more)).success();
    let table = run(&["--prompt", "5", "--generate", "0", "--preload"]).stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("work") && lines[1].starts_with("prefill"), "{table}");
    let csv = run(&["--prompt", "0", "--generate", "3", "--csv"]).stdout;
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 3, "{csv}");
    assert!(
        lines[0].starts_with("work,threads,batch,depth,tokens/s,") && lines[1].starts_with("decode,1,1,0,")
    );
}

#[test]
fn a_plot_holds_the_lines_of_all_reports() {
    let place = Workplace::new();
    let report = run(&place, &["--json"]).stdout;
    let files = [place.file("a.json", &report), place.file("b & <c>.json", &report)];
    let svg = place.path("speed.svg");
    let args = ["bench".as_ref(), "plot".as_ref(), files[0].as_os_str(), files[1].as_os_str(), "-o".as_ref()];
    place.run(args.into_iter().chain([svg.as_os_str()])).success();
    let text = fs::read_to_string(&svg).unwrap();
    let document = roxmltree::Document::parse(&text).unwrap();
    // Two files of one line in each of two panels; a line has two depths.
    let in_svg = |name: &str| {
        let name = ("http://www.w3.org/2000/svg", name);
        document.descendants().filter(|node| node.has_tag_name(name)).count()
    };
    assert_eq!((in_svg("polyline"), in_svg("circle")), (4, 8));
    assert!(document.descendants().any(|node| node.text() == Some("b & <c>, 1 thread")));
}

#[test]
fn what_is_no_report_is_refused_by_name() {
    let place = Workplace::new();
    let file = place.file("report.json", "{}");
    let args = ["bench", "plot", file.to_str().unwrap(), "-o", "x.svg"];
    place.run(args).fails_with(&["report.json", "missing field"]);
    let absent = place.path("absent.json");
    place.run(["bench", "plot", absent.to_str().unwrap(), "-o", "x.svg"]).fails_with(&["absent.json"]);
    assert!(!place.path("x.svg").exists());
}

#[test]
fn kernels_are_measured_at_the_shapes_of_the_model() {
    let place = Workplace::new();
    let args = ["bench", "kernels", "--rows", "1,3,17", "--depth", "70", "--repeat", "1", "--threads", "1"];
    let report = place.run(args.into_iter().chain(["--json"])).success().json();
    let kernels = report["kernels"].as_array().unwrap();
    let of = |name: &str| {
        let named = |found: &&Value| found["names"].as_array().unwrap().iter().any(|known| known == name);
        kernels.iter().filter(named).collect::<Vec<_>>()
    };
    let head = of("lm_head.weight");
    assert_eq!(head.iter().map(|found| found["tokens"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3, 17]);
    assert_eq!((&head[0]["rows"], &head[0]["cols"]), (&Value::from(1024), &Value::from(128)));
    let experts = of("moe_decoder_block.mlp.experts.w2");
    assert_eq!(experts[0]["format"], "fp8");
    // Few rows and many in f32, many in integers, too, which the specification does not take.
    let found = experts
        .iter()
        .map(|found| (found["tokens"].as_u64().unwrap(), found["arithmetic"].as_str().unwrap()));
    let found: Vec<_> = found.filter(|&(tokens, _)| tokens != 3).collect();
    let expected = [(1, "float"), (17, "float"), (17, "integer")];
    assert_eq!(found, expected[..if head[0]["kernels"] == "scalar" { 2 } else { 3 }]);
    assert!(head.iter().all(|found| found["arithmetic"] == "float"), "its weights are bf16");
    assert!(head[0]["flops_share"].as_f64().unwrap() > 0.0);
    assert!(of("embedding.weight").is_empty());
    // One token of each of few sequences, or a chunk of one, in each format of the cache.
    for (name, tokens) in [("attention, absorbed", [1, 3].as_slice()), ("attention, expanded", &[17])] {
        let found = of(name);
        let keys = found.iter().map(|found| {
            assert_eq!(found["depth"], 70);
            (found["format"].as_str().unwrap(), found["tokens"].as_u64().unwrap())
        });
        let expected = ["f32", "bf16", "q8"].into_iter();
        let expected = expected.flat_map(|format| tokens.iter().map(move |&tokens| (format, tokens)));
        assert_eq!(keys.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{name}");
    }
    // 8 heads; latents of 64 with 16 rotated, keys of 32 more and values of 32. In f32, the first format.
    let (decode, chunk) = (of("attention, absorbed")[1], of("attention, expanded")[0]);
    assert_eq!(decode["operations"], f64::from(3 * 71 * 2 * 8 * (2 * 64 + 16)));
    assert_eq!(decode["bytes"], 3 * 71 * 4 * 80);
    let pairs = 17 * 70 + 17 * 18 / 2;
    assert_eq!(chunk["operations"], f64::from(pairs * 2 * 8 * (32 + 16 + 32) + 87 * 2 * 8 * (32 + 32) * 64));
    let text = place.run(args).success().stdout;
    assert!(text.contains("attention, absorbed") && text.contains("depth"), "{text}");
}

#[test]
fn a_step_is_counted_without_weights() {
    let place = Workplace::new();
    let config = tiny().join("config.json");
    let args = ["bench", "count", "--model", config.to_str().unwrap(), "--depths", "0,100", "--prompt", "32"];
    let text = place.run(args).success().stdout;
    assert!(text.contains("moe_decoder_block.mlp.experts.w2") && text.contains("prefill"), "{text}");
    let count = place.run(args.into_iter().chain(["--json"])).success().json();
    assert_eq!(count["steps"].as_array().unwrap().len(), 4);
    assert_eq!(count["steps"][1]["depth"], 100);
    // 8 heads; latents of 64 with 16 rotated, in bf16.
    assert_eq!(count["attention"]["absorbed_flops"], 2 * 8 * (2 * 64 + 16));
    assert_eq!(count["attention"]["cached_bytes"], 2 * 81);
    assert!(!place.path("cache").exists());
}

#[test]
fn bad_options_are_usage_errors() {
    let place = Workplace::new();
    for (options, part) in [
        ("run --threads 0", "--threads"),
        ("run --batch 0", "--batch"),
        ("run --repeat 0", "--repeat"),
        ("run --depths 1,x", "--depths"),
        ("run --json --csv", "cannot be used with"),
        ("run --prompt 0 --generate 0", "nothing to measure"),
        ("kernels --rows 0", "--rows"),
        ("count --formats q3", "expected one of"),
        ("count --bandwidth 0", "--bandwidth"),
        ("plot -o x.svg", "FILE"),
    ] {
        place.run(["bench"].into_iter().chain(options.split(' '))).is_usage_error(part);
    }
    let deep = place.run(["bench", "run", "--depths", "2000", "--prompt", "100", "--threads", "1"]);
    assert_eq!(deep.code, 1);
    assert!(deep.stderr.contains("max_position_embeddings is 2048"), "{}", deep.stderr);
}

#[test]
fn preloaded_and_locked_weights_give_the_same_text() {
    let place = Workplace::new();
    let ids = [5, 6, 7];
    let plain = place.generate_ids(&tiny(), &ids, &["--max-new-tokens", "4"]).success();
    let preloaded = place.generate_ids(&tiny(), &ids, &["--max-new-tokens", "4", "--preload"]).success();
    assert_eq!(support::token_ids(&plain.json()), support::token_ids(&preloaded.json()));
    assert!(!preloaded.stderr.contains("reading the weights"), "all was in memory: {}", preloaded.stderr);
    let locked = place.generate_ids(&tiny(), &ids, &["--max-new-tokens", "4", "--mlock"]);
    if locked.code == 0 {
        assert_eq!(support::token_ids(&plain.json()), support::token_ids(&locked.json()));
    } else {
        assert!(locked.stderr.contains("ulimit -l unlimited"), "{}", locked.stderr);
    }
}
