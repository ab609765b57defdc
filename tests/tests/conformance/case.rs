//! A case: one claim about one behaviour, and what upstream's tests of the same are called.

use crate::rows::Row;

/// One claim, and the function that panics if it does not hold.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The behaviour that it is about.
    pub row: Row,
    /// `file::claim`.
    pub name: &'static str,
    /// The tests of kube-proxy that make the same claim, see [`crate::upstream`].
    pub upstream: &'static [&'static str],
    /// Whether this kernel has what it needs.
    pub possible: fn() -> bool,
    /// Makes its own lab.
    pub run: fn(),
}

/// `Row: function, ["upstream", ...];` one line per case of a file. `if condition` before the semicolon names a function that
/// says whether the case is possible here.
macro_rules! cases {
    ($($row:ident: $function:ident, [$($upstream:literal),* $(,)?] $(if $possible:path)?;)*) => {
        /// The cases of this file.
        pub const CASES: &[$crate::case::Case] = &[
            $($crate::case::Case {
                row: $crate::rows::Row::$row,
                name: $crate::case::without_crate(concat!(module_path!(), "::", stringify!($function))),
                upstream: &[$($upstream),*],
                possible: $crate::case::possible!($($possible)?),
                run: $function,
            }),*
        ];
    };
}
pub(crate) use cases;

/// The condition of a case; without one it is always possible.
macro_rules! possible {
    () => {
        || true
    };
    ($possible:path) => {
        $possible
    };
}
pub(crate) use possible;

/// A path without its first part.
pub const fn without_crate(path: &str) -> &str {
    let mut at = 0;
    while path.as_bytes()[at] != b':' {
        at += 1;
    }
    path.split_at(at + 2).1
}
