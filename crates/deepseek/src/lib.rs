//! deepseek
