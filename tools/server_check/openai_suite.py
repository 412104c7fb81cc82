"""What the official `openai` client gets from `dsv3 serve` with the embedded model.

    python openai_suite.py URL

The model adds and subtracts whole numbers, and thinks before it answers; everything else it says is nonsense, in the form
that is asked for.
"""

import json
import sys
import unittest

import openai

URL = "http://127.0.0.1:8080"
QUESTION = [{"role": "user", "content": "What is 27 + 58?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"enum": [3, 4]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


class Suite(unittest.TestCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)
        self.model = self.client.models.list().data[0].id

    def chat(self, **more):
        return self.client.chat.completions.create(**{"model": self.model, "messages": QUESTION, **more})

    def test_models(self):
        card = self.client.models.retrieve(self.model)
        self.assertEqual((card.id, card.object), (self.model, "model"))

    def test_chat(self):
        answer = self.chat()
        choice = answer.choices[0]
        self.assertTrue(choice.message.content.strip().endswith("= 85"), choice)
        self.assertIn("7+8=15", choice.message.reasoning_content)
        self.assertEqual((choice.finish_reason, choice.message.role), ("stop", "assistant"))
        usage = answer.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertEqual(self.chat(max_completion_tokens=5).choices[0].finish_reason, "length")

    def test_chat_stream(self):
        whole = self.chat()
        content, thoughts, finish, usage = "", "", None, None
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            if chunk.usage:
                usage = chunk.usage
            for choice in chunk.choices:
                content += choice.delta.content or ""
                thoughts += getattr(choice.delta, "reasoning_content", None) or ""
                finish = choice.finish_reason or finish
        message = whole.choices[0].message
        self.assertEqual((content, thoughts, finish), (message.content, message.reasoning_content, "stop"))
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)

    def test_chat_stream_helper(self):
        with self.client.chat.completions.stream(model=self.model, messages=QUESTION) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.content, self.chat().choices[0].message.content)

    def test_a_long_conversation_finds_its_beginning_in_the_cache(self):
        system = {"role": "system", "content": "You add whole numbers. " * 12}
        self.chat(messages=[system, *QUESTION])
        again = self.chat(messages=[system, *QUESTION])
        self.assertGreater(again.usage.prompt_tokens_details.cached_tokens, 0)

    def test_seed_and_n(self):
        ask = dict(temperature=5, seed=7, n=3, max_tokens=12)
        texts = lambda answer: [choice.message.reasoning_content for choice in answer.choices]
        first = texts(self.chat(**ask))
        self.assertEqual(first, texts(self.chat(**ask)))
        self.assertEqual(first[:1], texts(self.chat(**{**ask, "n": 1})))
        self.assertEqual(len(set(first)), 3)

    def test_stop(self):
        whole = self.chat().choices[0].message.reasoning_content
        answer = self.chat(stop=["tens"]).choices[0]
        self.assertEqual((answer.message.reasoning_content, answer.finish_reason), (whole.split("tens")[0], "stop"))

    def test_logit_bias(self):
        answer = self.chat(max_tokens=4, logprobs=True)
        first = answer.choices[0].logprobs.content[0]
        tokens = self.client.post("/tokenize", cast_to=object, body={"prompt": first.token, "add_special_tokens": False})
        other = self.chat(max_tokens=4, logprobs=True, logit_bias={str(tokens["tokens"][0]): -100})
        self.assertNotEqual(other.choices[0].logprobs.content[0].token, first.token)

    def test_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=3)
        content = answer.choices[0].logprobs.content
        self.assertEqual(len(content), answer.usage.completion_tokens)
        for token in content:
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertLessEqual(token.logprob, 0)
            # Greedy: the token is the likeliest.
            self.assertEqual(token.token, token.top_logprobs[0].token)

    def test_tools_that_must_be_called(self):
        for choice in ["required", {"type": "function", "function": {"name": "add"}}]:
            answer = self.chat(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
            self.check_call(answer.choices[0].message.tool_calls, answer.choices[0].finish_reason)

    def test_tools_streamed(self):
        name, arguments, finish = "", "", None
        stream = self.chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, stream=True)
        for chunk in stream:
            choice = chunk.choices[0]
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                name += call.function.name or ""
                arguments += call.function.arguments or ""
        self.assertEqual((name, finish), ("add", "tool_calls"))
        self.assertIn(json.loads(arguments)["a"], [1, 2])

    def test_tools_and_their_results_in_the_history(self):
        call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 3}'}}
        messages = [
            *QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "4"},
        ]
        answer = self.chat(messages=messages, tools=[TOOL], max_tokens=20)
        self.assertEqual(len(answer.choices), 1)

    def check_call(self, calls, finish):
        self.assertEqual((len(calls), finish), (1, "tool_calls"))
        self.assertEqual(calls[0].function.name, "add")
        arguments = json.loads(calls[0].function.arguments)
        self.assertTrue(arguments["a"] in [1, 2] and arguments["b"] in [3, 4])

    def test_json_schema(self):
        schema = {
            "type": "object",
            "properties": {"sign": {"enum": ["plus", "minus"]}, "digit": {"enum": [1, 2, 3]}},
            "required": ["sign", "digit"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "sum", "strict": True, "schema": schema}}
        answer = self.chat(response_format=form)
        value = json.loads(answer.choices[0].message.content)
        self.assertTrue(value["sign"] in ["plus", "minus"] and value["digit"] in [1, 2, 3])

    def test_json_object_and_vllms_forms(self):
        # A model as small as this may fill an object to the context's end, so it is told how it begins.
        answer = self.chat(extra_body={"structured_outputs": {"regex": "[0-9]{2}"}})
        self.assertRegex(answer.choices[0].message.content.strip(), "^[0-9]{2}$")
        answer = self.chat(extra_body={"guided_choice": ["plus", "minus"]})
        self.assertIn(answer.choices[0].message.content.strip(), ["plus", "minus"])
        answer = self.chat(response_format={"type": "json_object"}, max_tokens=200)
        self.assertTrue(answer.choices[0].message.content.strip().startswith("{"))

    def test_completions(self):
        ask = dict(model=self.model, prompt=["27 + 58 =", "1 + 1 ="], max_tokens=4, n=2, temperature=1, seed=3)
        answer = self.client.completions.create(**ask)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2, 3])
        echoed = self.client.completions.create(model=self.model, prompt="27 + 58", max_tokens=3, echo=True, logprobs=2)
        choice = echoed.choices[0]
        self.assertTrue(choice.text.startswith("27 + 58"))
        self.assertEqual(len(choice.logprobs.tokens), echoed.usage.total_tokens)
        self.assertIsNone(choice.logprobs.token_logprobs[0])
        streamed = "".join(
            chunk.choices[0].text
            for chunk in self.client.completions.create(model=self.model, prompt="27 + 58", max_tokens=3, echo=True, stream=True)
        )
        self.assertEqual(streamed, choice.text)

    def test_a_stream_that_is_left(self):
        stream = self.chat(stream=True, max_tokens=2000, temperature=2)
        next(iter(stream))
        stream.close()
        self.assertTrue(self.chat(max_tokens=1).choices)

    def test_errors(self):
        def refused(kind, **more):
            with self.assertRaises(kind) as caught:
                self.chat(**more)
            return caught.exception

        self.assertEqual(refused(openai.BadRequestError, temperature=-1).param, "temperature")
        self.assertEqual(refused(openai.BadRequestError, messages=[]).param, "messages")
        self.assertEqual(refused(openai.BadRequestError, extra_body={"temprature": 1}).code, "unknown_parameter")
        self.assertEqual(refused(openai.NotFoundError, model="gpt-4").code, "model_not_found")
        image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
        self.assertEqual(refused(openai.BadRequestError, messages=[image]).param, "messages[0].content")
        long = [{"role": "user", "content": "1 + 1 " * 3000}]
        self.assertEqual(refused(openai.BadRequestError, messages=long).code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError):
            self.client.embeddings.create(model=self.model, input="x")
        self.assertIsNotNone(refused(openai.BadRequestError, top_p=2).request_id)


if __name__ == "__main__":
    URL = sys.argv.pop(1)
    unittest.main()
