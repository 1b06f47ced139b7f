//! What the running kernel's tracepoints are called with, read in its type information (BTF,
//! Documentation/bpf/btf.rst). Pure but for reading the file.
//!
//! In: /sys/kernel/btf/vmlinux. Out: for a tracepoint, which of its arguments are pointers to which structure; whether a
//! structure has a member.
//!
//! Each tracepoint has a type `btf_trace_NAME`: a pointer to a function whose first parameter is the tracer's own.

use std::{fs, io, path::Path};

/// The running kernel's.
pub(super) const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const PTR: u32 = 2;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNC_PROTO: u32 = 13;
/// A chain of names for one type is short; a longer one is damage.
const LONGEST_CHAIN: usize = 16;
/// Structures without a name within each other.
const DEEPEST: usize = 4;

#[derive(Debug, thiserror::Error)]
pub(super) enum BtfError {
    #[error("{KERNEL} cannot be read: use a kernel with BTF (CONFIG_DEBUG_INFO_BTF)")]
    Read(#[source] io::Error),
    #[error("the kernel's type information is of an unknown form: use a newer agent")]
    Form,
}

/// Offset of each type's description, in order of their numbers; 0 is `void`.
pub(super) struct Btf {
    bytes: Vec<u8>,
    types: Vec<usize>,
    strings: usize,
}

/// What follows the three words that each type begins with.
fn tail(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        PTR | 7 | TYPEDEF | VOLATILE | CONST | 11 | 12 | 16 | 18 => 0,
        1 | 14 | 17 => 4,
        3 => 12,
        STRUCT | UNION | 15 | 19 => 12 * count,
        6 | FUNC_PROTO => 8 * count,
        _ => return None,
    })
}

impl Btf {
    pub(super) fn of_kernel() -> Result<Self, BtfError> {
        Self::parse(fs::read(Path::new(KERNEL)).map_err(BtfError::Read)?).ok_or(BtfError::Form)
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let mut btf = Self { bytes, types: vec![0], strings: 0 };
        let magic = u16::from_ne_bytes(btf.bytes.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let header = btf.word(4)?;
        let (mut at, length) = (header + btf.word(8)?, btf.word(12)?);
        btf.strings = header + btf.word(16)?;
        let end = at + length;
        while at < end {
            btf.types.push(at);
            let (kind, count) = btf.kind_at(at)?;
            at += 12 + tail(kind, count)?;
        }
        (at == end && btf.bytes.len() >= end).then_some(btf)
    }

    fn word(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?;
        usize::try_from(u32::from_ne_bytes(bytes.try_into().ok()?)).ok()
    }

    /// Kind, and number of members or parameters.
    fn kind_at(&self, at: usize) -> Option<(u32, usize)> {
        let info = self.word(at + 4)?;
        Some(((info >> 24) as u32 & 0x1f, info & 0xffff))
    }

    fn name_at(&self, at: usize) -> Option<&[u8]> {
        let text = self.bytes.get(self.strings.checked_add(self.word(at)?)?..)?;
        text.split(|byte| *byte == 0).next()
    }

    /// Place and kind of the type with this number, past names and qualifiers.
    fn resolve(&self, number: usize) -> Option<(usize, u32)> {
        let mut number = number;
        for _ in 0..LONGEST_CHAIN {
            let at = *self.types.get(number).filter(|_| number > 0)?;
            match self.kind_at(at)?.0 {
                TYPEDEF | VOLATILE | CONST => number = self.word(at + 8)?,
                kind => return Some((at, kind)),
            }
        }
        None
    }

    /// Where the type that this one points to stands, if it is a pointer.
    fn pointee(&self, number: usize) -> Option<(usize, u32)> {
        let (at, kind) = self.resolve(number)?;
        if kind == PTR { self.resolve(self.word(at + 8)?) } else { None }
    }

    /// Also within structures and unions that have no name.
    pub(super) fn has_member(&self, structure: &str, member: &str) -> bool {
        self.types.iter().skip(1).any(|at| {
            self.kind_at(*at).is_some_and(|(kind, _)| kind == STRUCT)
                && self.name_at(*at) == Some(structure.as_bytes())
                && self.holds(*at, member.as_bytes(), DEEPEST)
        })
    }

    fn holds(&self, at: usize, member: &[u8], depth: usize) -> bool {
        let Some((_, count)) = self.kind_at(at) else { return false };
        let found = |place: usize| {
            let name = self.name_at(place)?;
            if !name.is_empty() || depth == 0 {
                return Some(name == member);
            }
            let (inside, kind) = self.resolve(self.word(place + 4)?)?;
            Some(matches!(kind, STRUCT | UNION) && self.holds(inside, member, depth - 1))
        };
        (0..count).any(|index| found(at + 12 + 12 * index).unwrap_or(false))
    }

    /// For each argument the name of the structure that it points to; empty for all else. `None`: there is no such
    /// tracepoint.
    pub(super) fn tracepoint(&self, name: &str) -> Option<Vec<String>> {
        let wanted = format!("btf_trace_{name}");
        let number = (1..self.types.len()).find(|number| {
            let at = self.types[*number];
            self.kind_at(at).is_some_and(|(kind, _)| kind == TYPEDEF)
                && self.name_at(at) == Some(wanted.as_bytes())
        })?;
        let (at, kind) = self.pointee(number)?;
        if kind != FUNC_PROTO {
            return None;
        }
        let (_, count) = self.kind_at(at)?;
        let argument = |index: usize| {
            let pointee = self.pointee(self.word(at + 12 + 8 * index + 4)?)?;
            let (at, _) = Some(pointee).filter(|(_, kind)| *kind == STRUCT)?;
            Some(String::from_utf8_lossy(self.name_at(at)?).into_owned())
        };
        Some((1..count).map(|index| argument(index).unwrap_or_default()).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel would write it.
    struct Writer {
        types: Vec<u32>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Writer {
        fn new() -> Self {
            Self { types: Vec::new(), strings: vec![0], count: 0 }
        }

        fn add(&mut self, name: &str, kind: u32, vlen: u32, rest: &[u32]) -> u32 {
            let offset = if name.is_empty() { 0 } else { self.string(name) };
            self.types.extend([offset, kind << 24 | vlen]);
            self.types.extend(rest);
            self.count += 1;
            self.count
        }

        fn string(&mut self, text: &str) -> u32 {
            let offset = self.strings.len() as u32;
            self.strings.extend(text.as_bytes());
            self.strings.push(0);
            offset
        }

        /// With one member in a union of no name.
        fn pointer_to_struct(&mut self, name: &str, member: &str) -> u32 {
            let member = self.string(member);
            let inner = self.add("", UNION, 1, &[8, member, 1, 0]);
            let found = self.add(name, STRUCT, 1, &[8, 0, inner, 0]);
            self.add("", PTR, 0, &[found])
        }

        fn tracepoint(&mut self, name: &str, arguments: &[u32]) {
            let mut parameters = vec![0, 0, 0];
            for argument in arguments {
                parameters.extend([0, *argument]);
            }
            let function = self.add("", FUNC_PROTO, arguments.len() as u32 + 1, &parameters);
            let pointer = self.add("", PTR, 0, &[function]);
            self.add(&format!("btf_trace_{name}"), TYPEDEF, 0, &[pointer]);
        }

        fn bytes(self) -> Vec<u8> {
            let types: Vec<u8> = self.types.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let mut bytes = MAGIC.to_ne_bytes().to_vec();
            bytes.extend([1, 0]);
            for word in [24, 0, types.len() as u32, types.len() as u32, self.strings.len() as u32] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(types);
            bytes.extend(self.strings);
            bytes
        }
    }

    fn kernel() -> Vec<u8> {
        let mut writer = Writer::new();
        let int = writer.add("int", 1, 0, &[4, 0]);
        let queue = writer.pointer_to_struct("request_queue", "disk");
        let request = writer.pointer_to_struct("request", "bio");
        let named = writer.add("request_pointer", TYPEDEF, 0, &[request]);
        writer.tracepoint("old", &[queue, request]);
        writer.tracepoint("new", &[named]);
        writer.tracepoint("complete", &[request, int, int]);
        writer.bytes()
    }

    #[test]
    fn arguments_are_told_by_what_they_point_to() {
        let btf = Btf::parse(kernel()).unwrap();
        let arguments = |name: &str| btf.tracepoint(name);
        assert_eq!(arguments("old").unwrap(), ["request_queue", "request"]);
        assert_eq!(arguments("new").unwrap(), ["request"]);
        assert_eq!(arguments("complete").unwrap(), ["request", "", ""]);
        assert_eq!(arguments("none"), None);
    }

    #[test]
    fn members_are_found_in_their_structure() {
        let btf = Btf::parse(kernel()).unwrap();
        assert!(btf.has_member("request_queue", "disk") && btf.has_member("request", "bio"));
        assert!(!btf.has_member("request_queue", "bio") && !btf.has_member("gendisk", "disk"));
    }

    proptest! {
        #[test]
        fn damage_ends_in_an_answer(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut bytes = kernel();
            for (place, byte) in places {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if let Some(btf) = Btf::parse(bytes) {
                for name in ["old", "new", "complete"] {
                    btf.tracepoint(name);
                }
                btf.has_member("request", "bio");
            }
        }

        #[test]
        fn a_cut_file_ends_in_an_answer(length in 0_usize..400) {
            let mut bytes = kernel();
            bytes.truncate(length);
            if let Some(btf) = Btf::parse(bytes) {
                btf.tracepoint("old");
            }
        }
    }

    /// Whatever kernel runs the tests has this one, with the request somewhere.
    #[test]
    fn this_kernel_is_read() {
        let Ok(btf) = Btf::of_kernel() else { return };
        let arguments = btf.tracepoint("block_rq_issue").unwrap();
        assert!(arguments.iter().any(|name| name == "request"), "{arguments:?}");
        assert!(btf.has_member("request", "__sector"));
    }
}
