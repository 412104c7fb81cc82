//! How a text is cut into windows and which tokens of each count, as llama-perplexity does it
//! (llama.cpp, `tools/perplexity/perplexity.cpp`).

use std::ops::Range;

use dsv3_runtime::TokenId;

use crate::Error;

/// The windows of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window.
    length: usize,
    /// From the start of one window to that of the next.
    step: usize,
    /// How many windows there are.
    count: usize,
    /// The rows of a window's logits whose next token counts.
    scored: Range<usize>,
    /// What stands in each window in place of its first token.
    bos: Option<TokenId>,
}

/// One window of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its tokens as the model is to run them.
    pub tokens: Vec<TokenId>,
    /// The rows of its logits that count, each as a guess at the token after its own.
    pub scored: Range<usize>,
}

impl Windows {
    /// Windows of `length` tokens side by side. The second half of each counts, so that every guess has half a window
    /// before it at least. The text's last tokens, too few for a window, are left out.
    ///
    /// With `bos`, every window's first token is replaced by it: models that were trained with a begin-of-sequence
    /// token are lost without it. That token never counts, being in the first half.
    ///
    /// # Errors
    /// [`Error::Parameter`] for windows shorter than 3 tokens, in which nothing counts; [`Error::TextTooShort`] for
    /// fewer `tokens` than one window's.
    pub fn halves(tokens: usize, length: usize, bos: Option<TokenId>) -> Result<Self, Error> {
        if length < 3 {
            return Err(parameter("window", length, "at least 3"));
        }
        let count = tokens / length;
        if count == 0 {
            return Err(Error::TextTooShort { tokens, needed: length });
        }
        Ok(Self { length, step: length, count, scored: length / 2..length - 1, bos })
    }

    /// Windows of `length` tokens that begin every `stride` tokens, of which the last `stride` tokens count: every
    /// token from `length - stride` on once, with the rest of a window before it.
    ///
    /// No token is replaced: llama-perplexity puts its begin-of-sequence token there after the window has run. What it
    /// prints as "Calculation chunk" is `length`.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a stride of 0 or one that leaves nothing of the window before it;
    /// [`Error::TextTooShort`] for fewer `tokens` than one more than a window's.
    pub fn strided(tokens: usize, length: usize, stride: usize) -> Result<Self, Error> {
        if stride == 0 || stride >= length {
            return Err(parameter("stride", stride, "at least 1 and below the window"));
        }
        let rest = tokens.saturating_sub(length);
        if rest == 0 {
            return Err(Error::TextTooShort { tokens, needed: length.saturating_add(1) });
        }
        let scored = length - stride - 1..length - 1;
        Ok(Self { length, step: stride, count: rest.div_ceil(stride), scored, bos: None })
    }

    /// One window of a whole text, of which every token but the first counts.
    ///
    /// # Errors
    /// [`Error::TextTooShort`] for fewer than 2 tokens.
    pub fn whole(tokens: usize) -> Result<Self, Error> {
        if tokens < 2 {
            return Err(Error::TextTooShort { tokens, needed: 2 });
        }
        Ok(Self { length: tokens, step: tokens, count: 1, scored: 0..tokens - 1, bos: None })
    }

    /// The first `limit` windows only.
    ///
    /// # Errors
    /// [`Error::Parameter`] for 0.
    pub fn limited(self, limit: usize) -> Result<Self, Error> {
        if limit == 0 {
            return Err(parameter("max_windows", limit, "at least 1"));
        }
        Ok(Self { count: self.count.min(limit), ..self })
    }

    /// How many windows there are; 1 at least.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Tokens of a window.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Tokens that count, in all windows together.
    pub fn scored(&self) -> usize {
        self.scored.len() * self.count
    }

    /// Tokens of the text that some window holds.
    pub fn covered(&self) -> usize {
        (self.count - 1) * self.step + self.length
    }

    /// What stands in each window in place of its first token.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// A window of the text from which these windows were made.
    ///
    /// # Panics
    /// If there is no such window, or the text is shorter.
    pub fn window(&self, text: &[TokenId], index: usize) -> Window {
        assert!(index < self.count, "window {index} of {}", self.count);
        let start = index * self.step;
        let mut tokens = text[start..start + self.length].to_vec();
        if let Some(bos) = self.bos {
            tokens[0] = bos;
        }
        Window { tokens, scored: self.scored.clone() }
    }
}

fn parameter(parameter: &'static str, value: usize, expected: &'static str) -> Error {
    Error::Parameter { parameter, value: value.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(length: u32) -> Vec<TokenId> {
        (0..length).map(|id| TokenId(id + 10)).collect()
    }

    #[test]
    fn the_second_half_of_each_window_counts() {
        let windows = Windows::halves(1100, 512, None).unwrap();
        assert_eq!((windows.count(), windows.scored(), windows.covered()), (2, 2 * 255, 1024));
        let window = windows.window(&text(1100), 1);
        assert_eq!((window.tokens[0], window.tokens.len()), (TokenId(522), 512));
        // Row 256 guesses token 257; llama.cpp leaves token 256 out too.
        assert_eq!(window.scored, 256..511);
    }

    #[test]
    fn the_first_token_of_each_window_becomes_the_bos() {
        let windows = Windows::halves(7, 3, Some(TokenId(0))).unwrap();
        assert_eq!(windows.window(&text(7), 0).tokens, [0, 11, 12].map(TokenId));
        assert_eq!(windows.window(&text(7), 1).tokens, [0, 14, 15].map(TokenId));
        assert_eq!(windows.window(&text(7), 1).scored, 1..2);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let refused = |result: Result<Windows, Error>, part: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(Windows::halves(100, 2, None), "window is 2");
        refused(Windows::halves(511, 512, None), "511 tokens");
        refused(Windows::strided(512, 512, 128), "513");
        refused(Windows::strided(1000, 512, 0), "stride is 0");
        refused(Windows::strided(1000, 512, 512), "stride is 512");
        refused(Windows::whole(1), "1 token");
        refused(Windows::halves(512, 512, None).unwrap().limited(0), "max_windows is 0");
    }

    proptest! {
        #[test]
        fn strides_count_every_token_after_the_first_window_once(
            length in 2..40_usize, stride in 1..40_usize, more in 1..200_usize,
        ) {
            prop_assume!(stride < length);
            let tokens = length + more;
            let windows = Windows::strided(tokens, length, stride).unwrap();
            let text = text(u32::try_from(tokens).unwrap());
            let counted: Vec<TokenId> = (0..windows.count())
                .flat_map(|index| {
                    let window = windows.window(&text, index);
                    window.scored.clone().map(|row| window.tokens[row + 1]).collect::<Vec<_>>()
                })
                .collect();
            prop_assert_eq!(counted.len(), windows.scored());
            // llama.cpp stops where the next window's end would be the text's end or beyond.
            prop_assert!(windows.covered() < tokens && windows.covered() + stride >= tokens);
            prop_assert_eq!(&counted[..], &text[length - stride..windows.covered()]);
        }
    }
}
