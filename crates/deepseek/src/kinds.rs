//! What the weight matrices are for, and the storage formats that are asked for by it. Norms, biases and the gate have
//! no kind: they are few, and never quantised.

use dsv3_runtime::{Format, Formats, WeightKind};
use std::collections::BTreeMap;

/// The routed experts.
pub const EXPERTS: WeightKind = WeightKind("experts");
/// The shared experts.
pub const SHARED: WeightKind = WeightKind("shared");
/// The MLPs of the dense layers, and what joins the inputs of the MTP layer.
pub const DENSE: WeightKind = WeightKind("dense");
/// The projections of the attention but for [`KV_B`].
pub const ATTENTION: WeightKind = WeightKind("attention");
/// `kv_b_proj`, which decode reads twice: to absorb queries, and to expand values.
pub const KV_B: WeightKind = WeightKind("kv_b");
/// The table of token embeddings, of which a token reads one row.
pub const EMBEDDING: WeightKind = WeightKind("embedding");
/// The language-model head.
pub const HEAD: WeightKind = WeightKind("head");

/// All kinds, in the order in which they are named.
pub const ALL: [WeightKind; 7] = [EXPERTS, SHARED, DENSE, ATTENTION, KV_B, EMBEDDING, HEAD];

/// Leaves a kind in the format of the checkpoint.
const KEEP: &str = "keep";

/// A format by its name, asked for alone: a preset. Embeddings stay as they are in all of them: rows are looked up, not
/// multiplied. With q4_K, `kv_b_proj` and the head are q8_0: they are a small part of what a token reads, and what they
/// lose reaches every score and every logit.
fn preset(format: Format) -> BTreeMap<String, Format> {
    let mut kinds = BTreeMap::new();
    for kind in ALL.into_iter().filter(|&kind| kind != EMBEDDING) {
        let finer = format == Format::Q4K && (kind == KV_B || kind == HEAD);
        kinds.insert(kind.0.to_owned(), if finer { Format::Q8_0 } else { format });
    }
    kinds
}

/// Parses what `--format` takes: a preset, or `KIND=FORMAT` with commas between, or a preset and then exceptions from
/// it. `*` is every kind, `keep` what the checkpoint has; `attention` includes `kv_b` unless that is named, too.
///
/// # Errors
/// A message that says what could have been typed.
pub fn parse_formats(text: &str) -> Result<Formats, String> {
    let mut kinds = BTreeMap::new();
    let mut named = Vec::new();
    for (position, item) in text.split(',').map(str::trim).enumerate() {
        let Some((kind, format)) = item.split_once('=') else {
            if position > 0 {
                return Err(format!("expected KIND=FORMAT, got `{item}`: a format alone comes first"));
            }
            if item != KEEP {
                kinds = preset(parse_format(item)?);
            }
            continue;
        };
        let format = if format == KEEP { None } else { Some(parse_format(format)?) };
        let chosen: Vec<&str> = match kind {
            "*" => ALL.iter().map(|kind| kind.0).collect(),
            "attention" if !named.contains(&KV_B.0) => vec![ATTENTION.0, KV_B.0],
            kind => vec![parse_kind(kind)?],
        };
        for kind in chosen {
            match format {
                Some(format) => kinds.insert(kind.to_owned(), format),
                None => kinds.remove(kind),
            };
        }
        named.extend(ALL.iter().map(|known| known.0).filter(|&known| known == kind));
    }
    Ok(Formats { name: name(&kinds), kinds })
}

fn parse_format(text: &str) -> Result<Format, String> {
    let format = Format::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(text));
    format.ok_or_else(|| {
        let names = Format::ALL.map(Format::name).join(", ");
        format!("expected a format ({names} or {KEEP}), got `{text}`")
    })
}

fn parse_kind(text: &str) -> Result<&'static str, String> {
    ALL.into_iter().map(|kind| kind.0).find(|&kind| kind == text).ok_or_else(|| {
        let names = ALL.map(|kind| kind.0).join(", ");
        format!("expected a kind ({names} or *), got `{text}`")
    })
}

/// The shortest text that parses to these kinds among presets; else all of them in order. Nothing where nothing is
/// asked for.
fn name(kinds: &BTreeMap<String, Format>) -> String {
    if let Some(format) = Format::ALL.into_iter().find(|&format| preset(format) == *kinds) {
        return format.name().to_owned();
    }
    let named = ALL.iter().filter_map(|kind| Some((kind.0, kinds.get(kind.0)?)));
    let named: Vec<String> = named.map(|(kind, format)| format!("{kind}={format}")).collect();
    // Without its own format, what `attention` says would go for `kv_b`, too.
    let keeps_kv_b = kinds.contains_key(ATTENTION.0) && !kinds.contains_key(KV_B.0);
    let kept = keeps_kv_b.then(|| format!("{}={KEEP}", KV_B.0));
    named.into_iter().chain(kept).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, Format)> {
        parse_formats(text).unwrap().kinds.into_iter().collect()
    }

    fn named(kinds: &[(&str, Format)]) -> Vec<(String, Format)> {
        let mut kinds: Vec<_> = kinds.iter().map(|&(kind, format)| (kind.to_owned(), format)).collect();
        kinds.sort_by(|left, right| left.0.cmp(&right.0));
        kinds
    }

    #[test]
    fn kinds_are_asked_for_one_by_one_or_together() {
        assert_eq!(
            parsed("experts=q4_K, attention=q8_0"),
            named(&[("experts", Format::Q4K), ("attention", Format::Q8_0), ("kv_b", Format::Q8_0)])
        );
        assert_eq!(
            parsed("kv_b=bf16,attention=q8_0"),
            named(&[("kv_b", Format::Bf16), ("attention", Format::Q8_0)])
        );
        assert_eq!(parsed("*=q8_0").len(), ALL.len());
        assert_eq!(parsed("*=q8_0,embedding=keep,head=Q4_k").len(), ALL.len() - 1);
        assert_eq!(parsed("keep"), named(&[]));
    }

    #[test]
    fn a_preset_keeps_the_embedding_and_spares_the_head() {
        let q8 = Format::Q8_0;
        let q4 = Format::Q4K;
        let expected =
            [("experts", q4), ("shared", q4), ("dense", q4), ("attention", q4), ("kv_b", q8), ("head", q8)];
        assert_eq!(parsed("q4_K"), named(&expected));
        assert_eq!(parsed("q4_K,head=q4_K")[3], ("head".to_owned(), q4));
        assert!(parsed("q8_0").iter().all(|(kind, format)| kind != "embedding" && *format == q8));
    }

    #[test]
    fn names_are_short_and_parse_to_the_same() {
        for (text, expected) in [
            ("Q8_0", "q8_0"),
            ("keep", ""),
            ("experts=q4_K,shared=q4_K,dense=q4_K,attention=q4_K,kv_b=q8_0,head=q8_0", "q4_K"),
            ("head=q8_0,experts=q4_K", "experts=q4_K,head=q8_0"),
            ("attention=q8_0,kv_b=keep", "attention=q8_0,kv_b=keep"),
        ] {
            let formats = parse_formats(text).unwrap();
            assert_eq!(formats.name, expected);
            if !expected.is_empty() {
                assert_eq!(parse_formats(expected).unwrap(), formats);
            }
        }
    }

    #[test]
    fn what_is_unknown_is_refused_with_what_is_known() {
        for (text, expected) in [
            ("q5_K", "expected a format (f32, bf16, fp8, q8_0, q4_K or keep), got `q5_K`"),
            (
                "expert=q8_0",
                "expected a kind (experts, shared, dense, attention, kv_b, embedding, head or *), got `expert`",
            ),
            ("experts=q8_0,q4_K", "expected KIND=FORMAT, got `q4_K`: a format alone comes first"),
            ("", "expected a format (f32, bf16, fp8, q8_0, q4_K or keep), got ``"),
        ] {
            assert_eq!(parse_formats(text).unwrap_err(), expected);
        }
    }
}
