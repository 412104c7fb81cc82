//! `dsv3 chat`: a conversation in the terminal, or over pipes.

mod command;
mod conversation;
mod input;
mod interrupt;
mod params;
mod printer;

use super::generate::settings;
use crate::{
    args::ChatArgs,
    model::{ModelPlace, OpenModel},
    operator_configs::OperatorConfigs,
    output::{count, note},
    session::{PREFILL_CHUNK, Room, Session, limits},
};
use anyhow::{Result, bail};
use command::{Command, HELP};
use conversation::Conversation;
use dsv3_engine::{
    Bos, ChatAnswer, ChatOptions, ChatParser, ChatStart, ChatTemplate, EngineConfig, Event, Finish,
    Generation, GenerationConfig, Generator, ModelLimits, Request, Reuse, Tokenizer,
};
use dsv3_runtime::TokenId;
use input::{Input, Said};
use interrupt::Interrupt;
use params::Params;
use printer::Printer;
use std::{ops::ControlFlow, sync::Arc};

/// Runs the command.
pub(crate) fn run(args: ChatArgs) -> Result<()> {
    let conversation = match &args.load {
        Some(path) => Conversation::load(path)?,
        None => Conversation::new(args.system.as_deref()),
    };
    let place = ModelPlace::resolve(&args.model)?;
    let model = OpenModel::open(&place)?;
    let layout = args.device.mesh.layout.layout();
    let configs = OperatorConfigs::open(&model, layout, &args.configs, args.running.precision)?;
    let tokenizer = Arc::new(Tokenizer::from_dir(model.dir(), model.hf.vocab_size)?);
    let Some(template) = ChatTemplate::from_dir(model.dir())? else {
        bail!("{} has no chat template: `dsv3 generate` continues plain text", model.dir().display());
    };
    let defaults = GenerationConfig::from_dir(model.dir())?;
    let params = Params::new(&args.sampling, &defaults, args.template_kwargs, &template)?;
    let context = settings::context(args.running.context, model.hf.max_position_embeddings, 0, None)?;
    let format = template.format().without_tools();
    let request = Request {
        eos_token_ids: settings::end_tokens(&defaults, &model.hf, &tokenizer),
        stop: args.sampling.stop,
        skip_special: format.skip_special(&tokenizer),
        ..Request::of(params.sampling(0)?)
    };

    let interrupt = Interrupt::install()?;
    let input = Input::open()?;
    let room = Room { cache: args.running.precision.or_fast().cache, ..Room::one(context) };
    let mut session = Session::open(&model, configs, room, args.device)?;
    note(format_args!(
        "{}; context {context}, cached in {}; {}",
        params.summary(),
        room.cache,
        session.device()
    ));
    if input.is_terminal() {
        note(format_args!("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves"));
    }
    let chat = Chat {
        // Each turn begins with all that was said and answered before.
        generator: Generator::with_config(
            &mut session,
            &tokenizer,
            EngineConfig { reuse: Reuse::All, ..EngineConfig::single(PREFILL_CHUNK) },
        )?,
        tokenizer: &tokenizer,
        template: &template,
        limits: limits(&model.hf, context),
        request,
        params,
        conversation,
        answers: 0,
        interrupt,
    };
    chat.run(input)
}

/// A running conversation.
struct Chat<'a> {
    generator: Generator<'a, Session>,
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    limits: ModelLimits,
    /// What is asked for, but for what `params` says.
    request: Request,
    params: Params,
    conversation: Conversation,
    /// Answers that were begun so far, by which their seeds differ.
    answers: u64,
    interrupt: Interrupt,
}

impl Chat<'_> {
    /// Reads and answers until the user leaves. On a terminal an error is said and the conversation goes on.
    ///
    /// # Errors
    /// Output that cannot be written; where nobody can answer an error, any.
    fn run(mut self, mut input: Input) -> Result<()> {
        let mut leaving = false;
        loop {
            let text = match input.read()? {
                Said::End => return Ok(()),
                Said::Interrupt if leaving => return Ok(()),
                Said::Interrupt => {
                    note(format_args!("Ctrl-C again, or Ctrl-D, leaves"));
                    leaving = true;
                    continue;
                }
                Said::Text(text) => text,
            };
            leaving = false;
            match self.react(&text) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Ok(()),
                Err(error) if input.is_terminal() && !error.is::<crate::output::ClosedStdout>() => {
                    note(format_args!("error: {}", crate::one_line(&error)));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn react(&mut self, text: &str) -> Result<ControlFlow<()>> {
        match Command::parse(text)? {
            Command::Nothing => {}
            Command::Say(text) => {
                self.conversation.ask(text);
                // A question that cannot be asked does not stand in the way of the next.
                self.answer().inspect_err(|_| self.conversation.take_back())?;
            }
            Command::Help => note(format_args!("{HELP}")),
            Command::System(None) => {
                note(format_args!("{}", self.conversation.system().unwrap_or("no system message")));
            }
            Command::System(Some(text)) => self.conversation.set_system(text),
            Command::Save(path) => {
                self.conversation.save(path)?;
                note(format_args!("saved {} to {}", self.conversation.size(), path.display()));
            }
            Command::Load(path) => {
                self.conversation = Conversation::load(path)?;
                note(format_args!("{} from {}", self.conversation.size(), path.display()));
            }
            Command::Params(None) => note(format_args!("{}", self.params)),
            Command::Params(Some((name, value))) => self.params.set(name, value)?,
            Command::New => self.conversation.clear(),
            Command::Regenerate => {
                let old = self.conversation.take_answer()?;
                self.answer().inspect_err(|_| self.conversation.put_back(old))?;
            }
            Command::Exit => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Answers the last message.
    fn answer(&mut self) -> Result<()> {
        let options = ChatOptions { variables: self.params.variables().clone(), ..ChatOptions::default() };
        let rendered = self.template.render(self.conversation.messages(), &options)?;
        let prompt = self.tokenizer.encode(&rendered, Bos::AsWritten)?;
        self.limits.check_prompt(&prompt)?;
        let request = Request {
            sampling: self.params.sampling(self.answers)?,
            max_new_tokens: self.params.max_new_tokens(),
            ..self.request.clone()
        };
        self.answers += 1;
        let mut parser = ChatParser::new(self.template.format().without_tools(), ChatStart::after(&rendered));
        let mut answer = ChatAnswer::default();
        let mut printer = Printer::new();
        let result = self.generate(&prompt, &request, |text, is_last| {
            let mut deltas = parser.push(text);
            if is_last {
                deltas.extend(parser.finish());
            }
            for delta in deltas {
                printer.print(&delta)?;
                answer.add(delta);
            }
            Ok(())
        });
        let end = printer.end();
        let generation = result?;
        end?;
        self.conversation.answer(answer);
        self.report(&generation, prompt.len());
        Ok(())
    }

    /// Runs the model; hands out the text as it comes, and that it was the last.
    fn generate(
        &mut self,
        prompt: &[TokenId],
        request: &Request,
        mut on_text: impl FnMut(&str, bool) -> Result<()>,
    ) -> Result<Generation> {
        let stopping = self.interrupt.listen();
        let mut shown = 0;
        let mut failure = None;
        let on_event = |event: &Event| {
            shown += event.text_delta.len();
            failure = on_text(&event.text_delta, false).err();
            if failure.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let generation = self.generator.generate_until(prompt, request, || stopping.is_asked(), on_event)?;
        match failure {
            Some(failure) => Err(failure),
            // Text that was held back is in the result alone where the generation was stopped.
            None => on_text(&generation.text[shown..], true).map(|()| generation),
        }
    }

    /// How fast it was, and why it ended where that is not plain.
    fn report(&self, generation: &Generation, prompt: usize) {
        let tokens = generation.tokens.len();
        let timings = &generation.timings;
        let speed = match timings.decode.tokens {
            0 => String::new(),
            _ => format!(", {:.1} tokens/s", timings.decode.per_second()),
        };
        let first = timings.time_to_first_token.as_secs_f64();
        let (used, context) = (prompt + tokens, self.limits.context());
        let end = match generation.finish {
            Finish::Cancelled => "; stopped",
            Finish::ContextEnd => {
                "; the context is full: /new begins another conversation, --context makes room"
            }
            Finish::MaxNewTokens => "; stopped at max_new_tokens",
            Finish::EndOfSequence(_) | Finish::StopString(_) | Finish::GrammarEnd => "",
        };
        let tokens = count(tokens as u64, "token");
        let cached = match generation.cached_tokens {
            0 => String::new(),
            cached => format!(", {cached} cached"),
        };
        let text = format!(
            "[{tokens}{speed}; first after {first:.2} s{cached}; {used} of {context} in the context{end}]"
        );
        note(format_args!("{}", printer::aside(&text)));
    }
}
