//! What came of trying the layers.

use std::collections::BTreeMap;
use std::num::NonZeroI32;

use protocol::Layer;
use serde::{Deserialize, Serialize};

/// What came of trying a layer. Outside of this process a number: the errno, 0 where it held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Option<i32>", into = "Option<i32>")]
pub enum Probe {
    /// It holds.
    Held,
    /// The kernel said no, with this errno.
    Refused(NonZeroI32),
    /// Nobody has tried it, because it has no use here.
    #[default]
    NotTried,
}

impl Probe {
    /// Not implemented: what a kernel without the layer answers.
    pub(crate) const NOT_THERE: Self = Self::Refused(NonZeroI32::new(38).expect("a number above 0"));

    /// Why it could not be had.
    pub fn reason(self) -> Option<std::io::Error> {
        match self {
            Self::Refused(errno) => Some(std::io::Error::from_raw_os_error(errno.get())),
            Self::Held | Self::NotTried => None,
        }
    }
}

impl From<Option<i32>> for Probe {
    fn from(errno: Option<i32>) -> Self {
        errno.map_or(Self::NotTried, |errno| NonZeroI32::new(errno).map_or(Self::Held, Self::Refused))
    }
}

impl From<Probe> for Option<i32> {
    fn from(probe: Probe) -> Self {
        match probe {
            Probe::Held => Some(0),
            Probe::Refused(errno) => Some(errno.get()),
            Probe::NotTried => None,
        }
    }
}

/// Where a system call was refused without an errno, the layer is not there.
impl From<&std::io::Error> for Probe {
    fn from(error: &std::io::Error) -> Self {
        error.raw_os_error().and_then(NonZeroI32::new).map_or(Self::NOT_THERE, Self::Refused)
    }
}

/// What came of trying each of the layers that have to be tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Probes {
    #[serde(flatten)]
    layers: BTreeMap<Layer, Probe>,
    /// Whether the machine has no shared memory that the code could write to. A finding, on which the layer `shared_memory`
    /// may stand.
    pub no_shared_memory: Probe,
}

impl Probes {
    pub(crate) fn new(layers: BTreeMap<Layer, Probe>, no_shared_memory: Probe) -> Self {
        Self { layers, no_shared_memory }
    }

    /// What came of this one.
    pub fn of(&self, layer: Layer) -> Probe {
        self.layers.get(&layer).copied().unwrap_or_default()
    }

    /// Whether it was tried and holds.
    pub fn hold(&self, layer: Layer) -> bool {
        self.of(layer) == Probe::Held
    }

    pub(crate) fn set(&mut self, layer: Layer, probe: Probe) {
        self.layers.insert(layer, probe);
    }

    /// A layer that held and holds no more `now`. What is only found out about the machine may change.
    pub(crate) fn lost(&self, now: &Self) -> Option<Layer> {
        let is_lost = |layer: &Layer| *layer != Layer::NetworkUnreachable && self.hold(*layer) && !now.hold(*layer);
        self.layers.keys().copied().find(is_lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes(layers: &[(Layer, i32)]) -> Probes {
        let layers = layers.iter().map(|(layer, errno)| (*layer, Probe::from(Some(*errno))));
        Probes::new(layers.collect(), Probe::Held)
    }

    #[test]
    fn a_layer_that_held_at_first_must_hold_after_a_restart() {
        use Layer::{Landlock, Namespaces, NetworkUnreachable, Seccomp};
        let first = probes(&[(Landlock, 0), (Namespaces, 1), (NetworkUnreachable, 0), (Seccomp, 0)]);
        assert_eq!(first.lost(&first), None);
        let mut better = probes(&[(Landlock, 0), (Namespaces, 0), (NetworkUnreachable, 106), (Seccomp, 0)]);
        better.no_shared_memory = Probe::NotTried;
        assert_eq!(first.lost(&better), None);
        assert_eq!(first.lost(&probes(&[(Landlock, 0), (Seccomp, 1)])), Some(Seccomp));
        assert_eq!(first.lost(&probes(&[(Seccomp, 0)])), Some(Landlock));
    }

    /// As `/health` has them.
    #[test]
    fn probes_are_told_as_numbers() {
        let told = serde_json::to_value(probes(&[(Layer::Seccomp, 0), (Layer::UserPerCall, 13)])).expect("numbers");
        assert_eq!(told, serde_json::json!({"seccomp": 0, "user_per_call": 13, "no_shared_memory": 0}));
    }
}
