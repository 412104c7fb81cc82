//! Weight trees: one tree a module, whose leaves say more at every stage.
//!
//! `WeightSpec` (what to do) becomes `SavedWeight` (where it lies) becomes `Weight` (mapped). The tree's shape is a
//! type, so that a missing or an extra name is a compile error in the code and a load error that names it in a file.

use serde::{Deserialize, Serialize};
use std::{
    convert::Infallible,
    fmt::{self, Display, Write as _},
    ops::Deref,
};

/// A leaf of a weight tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Leaf<W>(pub W);

impl<W> Deref for Leaf<W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.0
    }
}

/// The way from the root of a tree to a leaf, as in `moe_blocks.3.mla.wo`.
#[derive(Clone, Debug, Default)]
pub struct WeightPath(String);

impl WeightPath {
    /// Runs `f` one level deeper.
    pub fn enter<T>(&mut self, name: impl Display, f: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.0.len();
        let dot = if length > 0 { "." } else { "" };
        write!(self.0, "{dot}{name}").expect("a String takes all that is written to it");
        let result = f(self);
        self.0.truncate(length);
        result
    }
}

impl Display for WeightPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is done at each leaf of a tree.
pub type LeafFn<'f, A, B, E> = &'f mut dyn FnMut(&WeightPath, A) -> Result<B, E>;

/// A tree with leaves of type `W`.
pub trait WeightTree<W> {
    /// The same tree with other leaves.
    type With<V>: WeightTree<V>;

    /// Replaces every leaf, in order; stops at the first error.
    ///
    /// # Errors
    /// Those of `f`.
    fn try_map<V, E>(self, path: &mut WeightPath, f: LeafFn<'_, W, V, E>) -> Result<Self::With<V>, E>;

    /// Visits every leaf, in order.
    fn for_each(self, mut f: impl FnMut(&WeightPath, W))
    where
        Self: Sized,
    {
        let Ok(_) = self.try_map(&mut WeightPath::default(), &mut |path, leaf| {
            f(path, leaf);
            Ok::<_, Infallible>(())
        });
    }
}

impl<W> WeightTree<W> for Leaf<W> {
    type With<V> = Leaf<V>;

    fn try_map<V, E>(self, path: &mut WeightPath, f: LeafFn<'_, W, V, E>) -> Result<Leaf<V>, E> {
        f(path, self.0).map(Leaf)
    }
}

impl<W, T: WeightTree<W>> WeightTree<W> for Vec<T> {
    type With<V> = Vec<T::With<V>>;

    fn try_map<V, E>(self, path: &mut WeightPath, f: LeafFn<'_, W, V, E>) -> Result<Self::With<V>, E> {
        self.into_iter()
            .enumerate()
            .map(|(index, tree)| path.enter(index, |path| tree.try_map(path, f)))
            .collect()
    }
}

impl<W, T: WeightTree<W>> WeightTree<W> for Option<T> {
    type With<V> = Option<T::With<V>>;

    fn try_map<V, E>(self, path: &mut WeightPath, f: LeafFn<'_, W, V, E>) -> Result<Self::With<V>, E> {
        self.map(|tree| tree.try_map(path, f)).transpose()
    }
}

/// Declares the weight tree of a module: a struct generic over its leaf, with serde and [`WeightTree`].
///
/// A field is a [`Leaf`], another tree, or a `Vec` or an `Option` of one. A second parameter stands for a tree that
/// the user of the struct chooses.
#[macro_export]
macro_rules! weight_tree {
    ($(#[$meta:meta])* $vis:vis struct $name:ident<$leaf:ident $(, $tree:ident)?> {
        $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        $vis struct $name<$leaf $(, $tree)?> { $($(#[$field_meta])* pub $field: $type),* }

        impl<$leaf $(, $tree: $crate::WeightTree<$leaf>)?> $crate::WeightTree<$leaf> for $name<$leaf $(, $tree)?> {
            type With<V> = $name<V $(, $tree::With<V>)?>;

            fn try_map<V, E>(
                self,
                path: &mut $crate::WeightPath,
                f: $crate::LeafFn<'_, $leaf, V, E>,
            ) -> Result<Self::With<V>, E> {
                Ok($name {
                    $($field: path.enter(stringify!($field), |path| {
                        $crate::WeightTree::<$leaf>::try_map(self.$field, path, f)
                    })?),*
                })
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    weight_tree! { struct Inner<W> { w1: Leaf<W>, bias: Option<Leaf<W>> } }
    weight_tree! { struct Outer<W, F> { norm: Leaf<W>, inner: Vec<Inner<W>>, other: F } }

    fn tree() -> Outer<u32, Inner<u32>> {
        let inner = |w1, bias: Option<u32>| Inner { w1: Leaf(w1), bias: bias.map(Leaf) };
        Outer { norm: Leaf(1), inner: vec![inner(2, None), inner(3, Some(4))], other: inner(5, None) }
    }

    #[test]
    fn map_visits_every_leaf_in_order_under_its_name() {
        let mut seen = Vec::new();
        let mapped = tree().try_map(&mut WeightPath::default(), &mut |path, leaf| {
            seen.push(format!("{path}={leaf}"));
            Ok::<_, ()>(leaf.to_string())
        });
        assert_eq!(seen, ["norm=1", "inner.0.w1=2", "inner.1.w1=3", "inner.1.bias=4", "other.w1=5"]);
        assert_eq!(mapped.unwrap().inner[1].bias, Some(Leaf("4".to_owned())));
    }

    #[test]
    fn map_stops_at_the_first_error() {
        let result = tree().try_map(&mut WeightPath::default(), &mut |path, leaf| {
            if leaf == 3 { Err(path.to_string()) } else { Ok(leaf) }
        });
        assert_eq!(result.unwrap_err(), "inner.1.w1");
    }

    #[test]
    fn a_tree_survives_json_and_refuses_other_names() {
        let json = serde_json::to_string(&tree()).unwrap();
        assert_eq!(serde_json::from_str::<Outer<u32, Inner<u32>>>(&json).unwrap(), tree());
        let missing = serde_json::from_str::<Inner<u32>>(r#"{"bias":null}"#).unwrap_err().to_string();
        assert!(missing.contains("missing field `w1`"), "{missing}");
        let extra =
            serde_json::from_str::<Inner<u32>>(r#"{"w1":1,"bias":null,"w4":1}"#).unwrap_err().to_string();
        assert!(extra.contains("unknown field `w4`"), "{extra}");
    }
}
