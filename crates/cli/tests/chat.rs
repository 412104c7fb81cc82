//! `dsv3 chat`, over pipes and in a terminal.

mod support;

use rexpect::session::{PtySession, spawn_command};
use serde_json::Value;
use std::{fs, process::Stdio};
use support::{Run, Workplace, testdata, tiny};

fn chat(place: &Workplace, args: &[&str], stdin: &str) -> Run {
    place.run_with_stdin(["chat"].iter().chain(args), stdin.as_bytes())
}

#[test]
fn lines_from_a_pipe_are_answered() {
    let place = Workplace::new();
    let run = chat(&place, &[], "What is 27 + 58?\n\n\"\"\"\nWhat is\n2 + 3?\n\"\"\"\n").success();
    let (first, second) = run.stdout.split_once("= 85\n").expect("the first answer");
    assert!(first.starts_with("<think>\n") && first.contains("\n</think>\n"), "{first}");
    assert!(second.ends_with("5\n"), "{second}");
    assert_eq!(run.stderr.matches(" in the context]").count(), 2, "{}", run.stderr);
    assert!(!run.stdout.contains('\u{1b}') && !run.stderr.contains("/help"), "{run:#?}");
}

#[test]
fn a_conversation_is_saved_and_gone_on_with() {
    let place = Workplace::new();
    let commands =
        "/system Be brief.\nWhat is 1 + 1?\n/regenerate\n/save a.json\n/new\n/system\n/exit\nWhat?\n";
    let run = chat(&place, &[], commands).success();
    assert!(
        run.stderr.contains("saved 3 messages to a.json") && run.stderr.ends_with("Be brief.\n"),
        "{run:#?}"
    );
    let messages: Value = serde_json::from_slice(&fs::read(place.path("a.json")).unwrap()).unwrap();
    let roles: Vec<&str> = messages.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert!(messages[2]["content"].as_str().unwrap().contains("= 2"));
    assert!(messages[2]["reasoning_content"].as_str().unwrap().contains("1+1"));

    let run = chat(&place, &["--load", "a.json"], "What is 2 + 2?\n/save a.json\n").success();
    assert!(run.stderr.contains("saved 5 messages"), "{}", run.stderr);
    let error = chat(&place, &[], "/save a.json\n");
    error_line(&error, "a.json is there already");
}

#[test]
fn an_answer_is_that_of_generate() {
    let place = Workplace::new();
    let args = ["--temperature", "1", "--seed", "7", "--max-new-tokens", "40"];
    let generated = place.run(["generate", "--system", "S", "Hello"].iter().chain(&args)).success().stdout;
    let said = chat(&place, &[&["--system", "S"][..], &args].concat(), "Hello\n").success().stdout;
    let bare = |text: &str| {
        text.replace("<think>", "").replace("</think>", "").split_whitespace().collect::<String>()
    };
    assert_eq!(bare(&said), bare(&generated));
}

#[test]
fn an_answer_anew_is_another_and_a_run_repeats() {
    let place = Workplace::new();
    let args = ["--temperature", "2", "--seed", "3", "--max-new-tokens", "12"];
    let text = || chat(&place, &args, "Hello\n/regenerate\n").success().stdout;
    let both = text();
    let (first, second) = both.split_once("</think>\n").expect("answers that are cut off in their thoughts");
    assert_ne!(format!("{first}</think>\n"), second);
    assert_eq!(text(), both);
}

#[test]
fn a_turn_begins_with_what_is_cached_of_those_before() {
    let place = Workplace::new();
    let long = "word ".repeat(90);
    let run = chat(&place, &["--max-new-tokens", "8"], &format!("{long}\nAnd then?\n")).success();
    let reports: Vec<&str> = run.stderr.lines().filter(|line| line.ends_with("at max_new_tokens]")).collect();
    let [first, second] = reports[..] else { panic!("{}", run.stderr) };
    // Of the first prompt's 276 tokens four pages are whole.
    assert!(!first.contains(" cached") && second.contains(" s, 256 cached; "), "{}", run.stderr);
}

#[test]
fn the_checkpoint_says_how_answers_are_chosen() {
    let place = Workplace::new();
    let model = place.copy_of(&tiny());
    let config = r#"{"do_sample": true, "temperature": 0.5, "min_p": 0.25, "repetition_penalty": 1.5}"#;
    fs::write(model.join("generation_config.json"), config).unwrap();
    let run = chat(&place, &["--model", model.to_str().unwrap()], "/params\n").success();
    assert!(run.stderr.contains("min_p 0.25\nrepetition_penalty 1.5\n"), "{}", run.stderr);
    assert!(run.stderr.contains(", min-p 0.25, seed "), "{}", run.stderr);
}

#[test]
fn params_are_shown_and_checked() {
    let place = Workplace::new();
    let run = chat(
        &place,
        &["--temperature", "0.5"],
        "/params top_p 0.9\n/params max_new_tokens 3\n/params\nHello\n",
    );
    let run = run.success();
    assert!(
        run.stderr.contains("temperature 0.5\ntop_p 0.9\ntop_k 0\nmin_p 0\nrepetition_penalty 1\nseed "),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("[3 tokens, ") && run.stderr.contains("stopped at max_new_tokens"),
        "{}",
        run.stderr
    );
    error_line(&chat(&place, &[], "/params thinking true\n"), "thinking is neither a parameter");
    error_line(&chat(&place, &["--template-kwargs", "{\"x\": 1}"], ""), "x is neither a parameter");
    chat(&place, &["--template-kwargs", "x"], "").is_usage_error("--template-kwargs");
}

#[test]
fn what_cannot_be_is_an_error_in_one_line() {
    let place = Workplace::new();
    error_line(&chat(&place, &[], "/hello\n"), "/hello is no command");
    error_line(
        &chat(&place, &["--context", "16"], &format!("{}\n", "word ".repeat(90))),
        "the context holds 16",
    );
    error_line(&chat(&place, &["--load", "absent.json"], ""), "absent.json");
    error_line(&chat(&place, &["--model", testdata("odd-fp8").to_str().unwrap()], ""), "tokenizer.json");
    let model = place.copy_of(&tiny());
    let config = fs::read_to_string(model.join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config.as_object_mut().unwrap().remove("chat_template");
    fs::write(model.join("tokenizer_config.json"), config.to_string()).unwrap();
    error_line(&chat(&place, &["--model", model.to_str().unwrap()], "x\n"), "has no chat template");
}

/// That it failed with a last line that holds `part`.
#[track_caller]
fn error_line(run: &Run, part: &str) {
    let line = run.stderr.lines().last().unwrap_or_default();
    assert!(run.code == 1 && line.starts_with("dsv3: error: ") && line.contains(part), "{run:#?}");
}

/// A terminal in which the command runs. What it waits for must come within a minute.
fn terminal(place: &Workplace, args: &[&str]) -> PtySession {
    let mut command = place.command(["chat"].iter().chain(args));
    command.env("TERM", "xterm").env_remove("NO_COLOR").stdin(Stdio::inherit());
    let mut session = spawn_command(command, Some(60_000)).unwrap();
    session.exp_string("Ctrl-D leaves").unwrap();
    session.exp_string("> ").unwrap();
    session
}

#[test]
fn in_a_terminal_thoughts_are_dim_and_errors_do_not_end_it() {
    let place = Workplace::new();
    let mut session = terminal(&place, &[]);
    session.send_line("What is 27 + 58?").unwrap();
    session.exp_string("\u{1b}[2m").unwrap();
    session.exp_string("\u{1b}[0m").unwrap();
    session.exp_string("85").unwrap();
    session.exp_string(" in the context]").unwrap();
    session.send_line("/hello").unwrap();
    session.exp_string("error: /hello is no command").unwrap();
    // The name of a command is completed, and a line that ends with a backslash goes on.
    session.send("/sys\t").unwrap();
    session.flush().unwrap();
    session.exp_string("/system").unwrap();
    session.send_line(" One \\").unwrap();
    session.send_line("two.").unwrap();
    session.exp_string("> ").unwrap();
    session.send_line("/system").unwrap();
    session.exp_string("One \r\ntwo.").unwrap();
    // The arrow fetches an earlier line.
    session.send("\u{1b}[A\u{1b}[A").unwrap();
    session.flush().unwrap();
    session.exp_string("/system One").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("> ").unwrap();
    session.send_line("/exit").unwrap();
    session.exp_eof().unwrap();
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let place = Workplace::new();
    // So hot a model hardly ever comes to an end.
    let mut session = terminal(&place, &["--temperature", "1000", "--seed", "1"]);
    session.send_line("Hello").unwrap();
    session.exp_string("\u{1b}[2m").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("in the context; stopped]").unwrap();
    session.exp_string("> ").unwrap();
    session.send_line("/save a.json").unwrap();
    session.exp_string("saved 2 messages").unwrap();
    session.exp_string("> ").unwrap();
    session.send_control('c').unwrap();
    session.exp_string("Ctrl-C again").unwrap();
    session.exp_string("> ").unwrap();
    session.send_control('c').unwrap();
    session.exp_eof().unwrap();
}

#[test]
fn ctrl_d_leaves() {
    let place = Workplace::new();
    let mut session = terminal(&place, &[]);
    session.send_control('d').unwrap();
    session.exp_eof().unwrap();
}
