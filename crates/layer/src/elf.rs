//! Makes ELF files smaller by keeping only what is loaded.
//!
//! A shared library is mapped by its `PT_LOAD` segments; section headers, symbol tables for debuggers and the gaps between
//! segments are never read. The segments are written close together, each at an offset that agrees with its address
//! modulo the page. Unlike binutils' `strip`, this leaves alone what `patchelf` has made of the file.

/// Page size of the machines that Lambda has, on both architectures. Wheels for arm64 are laid out for 64 KiB pages.
const PAGE: u64 = 4096;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_NULL: u32 = 0;
const PT_LOAD: u32 = 1;

/// One program header, and where its fields are.
#[derive(Clone, Copy)]
struct Segment {
    at: usize,
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// The file without what is never loaded; `None` for what is no 64-bit little-endian ELF file, has a form that is not
/// understood, or would not become smaller.
pub(crate) fn compact(file: &[u8]) -> Option<Vec<u8>> {
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (read_u64(file, 32)?, read_u16(file, 54)?, read_u16(file, 56)?);
    if usize::from(size) != PROGRAM_HEADER {
        return None;
    }
    let table_size = u64::from(count) * PROGRAM_HEADER as u64;
    let segments = (0..usize::from(count))
        .map(|index| segment(file, usize::try_from(table).ok()? + index * PROGRAM_HEADER))
        .collect::<Option<Vec<_>>>()?;
    let mut loads = segments.iter().copied().filter(|segment| segment.kind == PT_LOAD && segment.size > 0).collect::<Vec<_>>();
    loads.sort_by_key(|segment| segment.offset);
    // The header itself is read from the file's start; the loader finds the table through the first segment.
    if loads.first()?.offset != 0 || loads[0].size < HEADER as u64 {
        return None;
    }
    let mut packed = Vec::with_capacity(file.len());
    let mut moved = Vec::new();
    for load in &loads {
        let from = usize::try_from(load.offset).ok()?;
        let content = file.get(from..from + usize::try_from(load.size).ok()?)?;
        let gap = (load.address % PAGE + PAGE - packed.len() as u64 % PAGE) % PAGE;
        packed.resize(packed.len() + usize::try_from(gap).ok()?, 0);
        moved.push((*load, packed.len() as u64));
        packed.extend_from_slice(content);
    }
    let place = |offset: u64, size: u64| {
        let within = moved.iter().find(|(load, _)| offset >= load.offset && offset + size <= load.offset + load.size);
        within.map(|(load, to)| offset - load.offset + to)
    };
    let new_table = place(table, table_size)?;
    for segment in &segments {
        let at = usize::try_from(new_table).ok()? + segment.at - usize::try_from(table).ok()?;
        match place(segment.offset, segment.size) {
            Some(offset) if segment.size > 0 => write_u64(&mut packed, at + 8, offset),
            // Nothing of it is in the file (stack flags, zeroed data): only its address counts.
            _ if segment.size == 0 => write_u64(&mut packed, at + 8, segment.address % PAGE),
            // Not loaded, so nobody can read it.
            _ => packed[at..at + 4].copy_from_slice(&PT_NULL.to_le_bytes()),
        }
        if segment.kind == PT_LOAD {
            write_u64(&mut packed, at + 48, PAGE);
        }
    }
    write_u64(&mut packed, 32, new_table);
    // No section headers: their offset, and in the last six bytes of the header their size, count and names.
    write_u64(&mut packed, 40, 0);
    packed[60..64].fill(0);
    (packed.len() < file.len()).then_some(packed)
}

/// Names of the libraries that the file needs (`DT_NEEDED`).
pub(crate) fn needs(file: &[u8], library: &str) -> bool {
    goblin::elf::Elf::parse(file).is_ok_and(|elf| elf.libraries.iter().any(|name| name.starts_with(library)))
}

fn segment(file: &[u8], at: usize) -> Option<Segment> {
    let kind = u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?);
    Some(Segment { at, kind, offset: read_u64(file, at + 8)?, address: read_u64(file, at + 16)?, size: read_u64(file, at + 32)? })
}

fn read_u64(file: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?))
}

fn read_u16(file: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?))
}

fn write_u64(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// This test's own program: compacted, it must still run.
    #[test]
    fn a_compacted_program_is_smaller_and_runs() {
        let program = std::fs::read(std::env::current_exe().expect("a path")).expect("a program");
        let small = compact(&program).expect("it has debug information");
        assert!(small.len() * 10 < program.len() * 9, "{} of {}", small.len(), program.len());
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("compacted");
        std::fs::write(&path, &small).expect("written");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, executable).expect("executable");
        let listed = Command::new(&path).arg("--list").output().expect("it starts");
        assert!(String::from_utf8_lossy(&listed.stdout).contains("a_compacted_program_is_smaller_and_runs"));
        assert!(compact(&small).is_none(), "a second time there is nothing to gain");
    }

    #[test]
    fn segments_agree_with_their_addresses() {
        let program = std::fs::read(std::env::current_exe().expect("a path")).expect("a program");
        let small = compact(&program).expect("it has debug information");
        let elf = goblin::elf::Elf::parse(&small).expect("still an ELF file");
        let before = goblin::elf::Elf::parse(&program).expect("an ELF file");
        assert_eq!(elf.libraries, before.libraries);
        for load in elf.program_headers.iter().filter(|header| header.p_type == PT_LOAD) {
            assert_eq!(load.p_offset % PAGE, load.p_vaddr % PAGE);
            assert!(load.p_offset + load.p_filesz <= small.len() as u64);
        }
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        for file in [&b""[..], b"text", b"\x7fELF\x01\x01", b"\x7fELF\x02\x01", &[0x7f, b'E', b'L', b'F', 2, 1, 0, 0, 0]] {
            assert!(compact(file).is_none());
        }
        let program = std::fs::read(std::env::current_exe().expect("a path")).expect("a program");
        assert!(compact(&program[..5000]).is_none(), "a file that ends early");
    }
}
