//! The system calls that user code is refused.
//!
//! Rule: a deny list with a reason beside each rule. numpy, pandas and BLAS use too many calls to list what is allowed;
//! what is denied here is what no data analysis needs and what exploits of the Linux kernel and escapes from a sandbox
//! have used. Calls of another architecture's numbering end the process.

mod rules;
#[cfg(test)]
mod tests;

use seccompiler::TargetArch;
use serde_json::{Value, json};

use rules::{EACCES, ENOSYS, EPERM, IGNORED, INSTALLER, NO_PROGRAMS, OWN_SIGNALS, Rule, When, rules, sockets};

/// Where [`own_signals_program`] has the pid of the process that installs it: above every pid Linux gives out.
pub const OWN_PID: u32 = 0x7FFF_FF01;

/// What the operator allows user code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Sockets that reach beyond the machine, and DNS.
    pub network: bool,
    /// Starting programs.
    pub subprocess: bool,
    /// Connections to sockets by their path where nothing hides those of the machine.
    pub unix_sockets: bool,
}

impl Rule {
    /// As filters of seccompiler's JSON.
    fn filters(&self, arch: TargetArch) -> Vec<Value> {
        if self.only_on.is_some_and(|only| only != arch) {
            return Vec::new();
        }
        let argument = |index: u8, op: Value, val: u64| json!({"index": index, "type": "dword", "op": op, "val": val});
        let none_of = |index, values: &[u64]| values.iter().map(|value| argument(index, json!("ne"), *value)).collect();
        let conditions: Vec<Option<Value>> = match self.when {
            When::Always | When::WithoutSubprocess => vec![None],
            When::FirstHasBit(bits) => {
                bits.iter().map(|bit| Some(json!([argument(0, json!({"masked_eq": bit}), *bit)]))).collect()
            }
            When::IsNone(index, values) => vec![Some(none_of(index, values))],
            When::IsOne(index, values) => {
                values.iter().map(|value| Some(json!([argument(index, json!("eq"), *value)]))).collect()
            }
            When::Are(values) => {
                let each = values.iter().map(|(index, mask, value)| argument(*index, json!({"masked_eq": mask}), *value));
                vec![Some(each.collect())]
            }
            When::Points(index) => vec![Some(json!([{"index": index, "type": "qword", "op": "ne", "val": 0}]))],
        };
        let filter = |call: &str, condition: &Option<Value>| match condition {
            None => json!({"syscall": call, "comment": self.reason}),
            Some(args) => json!({"syscall": call, "comment": self.reason, "args": args}),
        };
        self.calls.iter().flat_map(|call| conditions.iter().map(move |condition| filter(call, condition))).collect()
    }
}

/// The filter programs, one for each errno, as the bytes `PR_SET_SECCOMP` takes.
///
/// # Errors
/// When a rule names a call the architecture does not have: a mistake here, found by the tests.
pub fn programs(allowed: Allowed, arch: TargetArch) -> Result<Vec<Vec<u8>>, String> {
    let rules = rules(allowed);
    let mut programs = vec![bytes(&other_numbering(arch))];
    for errno in [EPERM, ENOSYS, IGNORED] {
        programs.push(compile(rules.iter().filter(|rule| rule.errno == errno), errno, arch)?);
    }
    Ok(programs)
}

/// The filter program that keeps a process from signalling others. [`OWN_PID`] stands in it for the process's own number.
///
/// # Errors
/// As [`programs`].
pub fn own_signals_program(arch: TargetArch) -> Result<Vec<u8>, String> {
    compile(OWN_SIGNALS.iter(), EPERM, arch)
}

/// The filter program about sockets. `own_root`: for kernels that have a root and a network of their own.
///
/// # Errors
/// As [`programs`].
pub fn sockets_program(allowed: Allowed, arch: TargetArch, own_root: bool) -> Result<Vec<u8>, String> {
    compile(sockets(allowed, own_root).iter(), EACCES, arch)
}

fn compile<'a>(rules: impl Iterator<Item = &'a Rule>, errno: u32, arch: TargetArch) -> Result<Vec<u8>, String> {
    let filter = rules.flat_map(|rule| rule.filters(arch)).collect::<Vec<_>>();
    let source = json!({"deny": {"mismatch_action": "allow", "match_action": {"errno": errno}, "filter": filter}});
    let compiled = seccompiler::compile_from_json(source.to_string().as_bytes(), arch).map_err(|error| error.to_string())?;
    Ok(bytes(compiled.get("deny").ok_or("no program was made")?))
}

/// The architecture this program was built for.
pub fn native_arch() -> Option<TargetArch> {
    std::env::consts::ARCH.try_into().ok()
}

/// x86-64 kernels may have a second numbering (x32), past every rule above: it answers ENOSYS, as if it was not built in.
fn other_numbering(arch: TargetArch) -> Vec<seccompiler::sock_filter> {
    const X32_BIT: u32 = 0x4000_0000;
    let statement = |code: u32, jt, jf, k| seccompiler::sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf, k };
    let allow = statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW);
    if arch != TargetArch::x86_64 {
        return vec![allow];
    }
    vec![
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32_BIT),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | ENOSYS),
        allow,
    ]
}

fn bytes(program: &[seccompiler::sock_filter]) -> Vec<u8> {
    let instruction = |filter: &seccompiler::sock_filter| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&filter.code.to_ne_bytes());
        (bytes[2], bytes[3]) = (filter.jt, filter.jf);
        bytes[4..].copy_from_slice(&filter.k.to_ne_bytes());
        bytes
    };
    program.iter().flat_map(instruction).collect()
}

fn installer_rules() -> Vec<Rule> {
    let allowed = Allowed { network: true, subprocess: true, unix_sockets: true };
    let replaced = |rule: &Rule| rule.calls.iter().any(|call| INSTALLER.iter().any(|own| own.calls.contains(call)));
    rules(allowed).into_iter().filter(|rule| !replaced(rule)).chain(INSTALLER.iter().copied()).collect()
}

/// The filter programs of an installer.
///
/// # Errors
/// As [`programs`].
pub(crate) fn installer_programs(arch: TargetArch) -> Result<Vec<Vec<u8>>, String> {
    let rules = installer_rules();
    let compiled =
        [EPERM, EACCES, ENOSYS, IGNORED].map(|errno| compile(rules.iter().filter(|rule| rule.errno == errno), errno, arch));
    std::iter::once(Ok(bytes(&other_numbering(arch)))).chain(compiled).collect()
}

/// The filter program of an installer that has started and starts nothing more.
///
/// # Errors
/// As [`programs`].
pub(crate) fn no_programs_program(arch: TargetArch) -> Result<Vec<u8>, String> {
    compile(NO_PROGRAMS.iter(), EPERM, arch)
}
