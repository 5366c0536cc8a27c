//! The stages of the warm stack, and which of them a cell needs.
//!
//! Rule: a cell runs in a kernel of the smallest stage that has everything its source mentions. A wrong guess costs
//! time, never correctness: what is not preloaded is imported when the code asks for it.

use memchr::memmem;

use crate::wire::StageWork;

/// One warm process: what it has imported on top of the stage before.
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    /// Imported in the zygote.
    imports: &'static [&'static str],
    /// Top-level modules whose mention in a cell asks for this stage.
    mentions: &'static [&'static str],
    /// Run in the zygote, so that lazy imports are done once.
    zygote_warm: &'static str,
    /// Run in an idle spare kernel, so that its first page faults are off the call's path.
    kernel_warm: &'static str,
}

pub(crate) const STAGES: [Stage; 4] = [
    Stage {
        name: "core",
        imports: &[
            "collections",
            "dataclasses",
            "datetime",
            "decimal",
            "functools",
            "itertools",
            "math",
            "random",
            "re",
            "statistics",
        ],
        mentions: &[],
        zygote_warm: "import warnings; import inspect; import tempfile",
        kernel_warm: "",
    },
    Stage {
        name: "data",
        imports: &["numpy", "pandas"],
        mentions: &["numpy", "pandas"],
        zygote_warm: include_str!("../../harness/warm_data.py"),
        kernel_warm: include_str!("../../harness/warm_kernel_data.py"),
    },
    Stage {
        name: "plot",
        imports: &["matplotlib.pyplot"],
        mentions: &["matplotlib"],
        zygote_warm: include_str!("../../harness/warm_plot.py"),
        kernel_warm: "",
    },
    Stage {
        name: "science",
        imports: &[
            "scipy.stats",
            "scipy.optimize",
            "scipy.linalg",
            "sklearn.linear_model",
            "sklearn.ensemble",
            "sklearn.cluster",
            "sklearn.model_selection",
            "sklearn.preprocessing",
            "sklearn.metrics",
            "seaborn",
            "requests",
            "httpx",
            "pydantic",
            "jinja2",
        ],
        mentions: &["scipy", "sklearn", "seaborn", "requests", "httpx", "pydantic", "jinja2"],
        zygote_warm: "",
        kernel_warm: "",
    },
];

/// How much of the stack is imported before it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preload {
    /// The bare interpreter.
    Core,
    /// And numpy, pandas.
    Data,
    /// And matplotlib.
    Plot,
    /// The whole stack.
    All,
}

impl Preload {
    /// How many stages that is.
    pub fn stages(self) -> usize {
        self as usize + 1
    }

    /// What a single cell needs, for a process that runs no other.
    pub fn for_code(code: &str) -> Self {
        [Self::Core, Self::Data, Self::Plot, Self::All][stage_for(code)]
    }
}

/// The index of the smallest stage that has what `code` mentions.
pub(crate) fn stage_for(code: &str) -> usize {
    STAGES.iter().rposition(|stage| stage.mentions.iter().any(|name| mentions(code, name))).unwrap_or(0)
}

/// Whether the word stands in the source; in a string or a comment counts too, which only costs time.
fn mentions(code: &str, word: &str) -> bool {
    let is_name = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let bytes = code.as_bytes();
    memmem::find_iter(bytes, word)
        .any(|at| !is_name(at.checked_sub(1).and_then(|before| bytes.get(before))) && !is_name(bytes.get(at + word.len())))
}

/// What a zygote of a stage does when it is forked from that of stage `from`, or from the holder.
pub(crate) fn work(from: Option<usize>, stage: usize) -> Vec<StageWork> {
    let own = &STAGES[from.map_or(0, |from| from + 1)..=stage];
    let work = |stage: &Stage| StageWork {
        name: stage.name,
        imports: stage.imports,
        warm: stage.zygote_warm,
        kernel_warm: stage.kernel_warm,
    };
    own.iter().map(work).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_gets_the_smallest_stage_that_has_what_it_mentions() {
        for (code, stage) in [
            ("print(2+3)", "core"),
            ("import pandas as pd", "data"),
            ("my_pandas = numpy_ = 1", "core"),
            ("from matplotlib import pyplot", "plot"),
            ("import pandas\nimport sklearn.svm", "science"),
            ("__import__('scipy')", "science"),
        ] {
            assert_eq!(STAGES[stage_for(code)].name, stage, "{code}");
        }
    }
}
