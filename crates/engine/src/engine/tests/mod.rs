//! The engine over an automaton whose cache is the pages.
