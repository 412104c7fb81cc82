//! From ids to text, one token at a time: text comes out as soon as its characters are whole.

use dsv3_runtime::TokenId;

use crate::Tokenizer;

/// The text of one sequence of tokens, as it grows. Byte-level tokens are strings of bytes, and a character may be
/// spread over up to four of them; only the bytes of the unfinished character are kept, so a token's cost does not
/// depend on how many came before it.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    skip_special: bool,
    /// The beginning of a character: at most three bytes.
    unfinished: Vec<u8>,
}

impl Detokenizer {
    /// At the start of a text. `skip_special` leaves out the tokens that `tokenizer.json` marks as special;
    /// DeepSeek's `<think>` is not one of them.
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, unfinished: Vec::new() }
    }

    /// Appends to `text` what `token` completes. Bytes that are no UTF-8 become U+FFFD, as in the tokenizer's own
    /// decoding; an id that the tokenizer does not have (the padding of the model's vocabulary) is no text.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: TokenId, text: &mut String) {
        if !(self.skip_special && tokenizer.is_special(token)) {
            self.push_bytes(tokenizer.bytes(token), text);
        }
    }

    /// Ends the text: the beginning of a character that was never completed, as U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.unfinished.is_empty() {
            self.unfinished.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn push_bytes(&mut self, bytes: &[u8], text: &mut String) {
        self.unfinished.extend_from_slice(bytes);
        let mut rest = self.unfinished.as_slice();
        loop {
            let error = match str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            text.push_str(str::from_utf8(valid).expect("from_utf8 said that this part is valid"));
            rest = invalid;
            let Some(length) = error.error_len() else {
                break; // what is left may yet become a character
            };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &rest[length..];
        }
        let done = self.unfinished.len() - rest.len();
        self.unfinished.drain(..done);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(chunks: &[&[u8]]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(true);
        let mut pieces = Vec::new();
        for chunk in chunks {
            let mut text = String::new();
            detokenizer.push_bytes(chunk, &mut text);
            assert!(detokenizer.unfinished.len() <= 3);
            pieces.push(text);
        }
        let mut text = String::new();
        detokenizer.finish(&mut text);
        pieces.push(text);
        pieces
    }

    #[test]
    fn a_character_comes_out_when_it_is_whole() {
        let emoji = "😀".as_bytes();
        assert_eq!(pieces(&[b"a", &emoji[..1], &emoji[1..3], &[emoji[3], b'b']]), ["a", "", "", "😀b", ""]);
    }

    #[test]
    fn what_never_becomes_a_character_is_replaced() {
        assert_eq!(pieces(&[&[0xE4, 0xB8], b"x"]), ["", "\u{FFFD}x", ""]);
        assert_eq!(pieces(&[&[0x80, 0x80]]), ["\u{FFFD}\u{FFFD}", ""]);
        assert_eq!(pieces(&[b"x", &[0xF0, 0x9F]]), ["x", "", "\u{FFFD}"]);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_read_as_the_whole_would(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 0..40),
        ) {
            let borrowed: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(pieces(&borrowed).concat(), String::from_utf8_lossy(&chunks.concat()).into_owned());
        }

        #[test]
        fn any_text_cut_into_bytes_comes_back(text in any::<String>()) {
            let chunks: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            prop_assert_eq!(pieces(&chunks).concat(), text);
        }
    }
}
