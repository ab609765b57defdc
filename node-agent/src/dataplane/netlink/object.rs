//! Tables, chains, sets and rules through libnftnl: with `sys`, the only `unsafe` code of the agent.
//!
//! Each object of libnftnl is owned by a Rust value that frees it. Messages are built into a scratch buffer, which every one
//! of them fits by far: the largest holds one rule of a dozen expressions.
#![expect(unsafe_code, reason = "libnftnl is a C library; every block says why it is sound")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "constants of C headers: attribute numbers below 100, and lengths of a few hundred bytes"
)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::NonNull;

use nftfleet_domain::service::Family;
use nftnl_sys as sys;
use nftnl_sys::libc;

use super::message::{INET, flag, kind};
use super::{instruction, userdata};
use crate::dataplane::expression::{Field, Rule};
use crate::dataplane::kernel::KernelError;
use crate::dataplane::layout::{Chain, Set, TABLE, TABLE_COMMENT};

/// Room for one message of libnftnl, in 64-bit words so that it is aligned.
const SCRATCH_WORDS: usize = 4096;

/// An object of libnftnl with the function that frees it.
pub struct Owned<T> {
    object: NonNull<T>,
    free: unsafe extern "C" fn(*const T),
}

impl<T> Owned<T> {
    /// Takes over an object that the library has made; `what` names it in case that it could not.
    pub fn new(object: *mut T, free: unsafe extern "C" fn(*const T), what: &'static str) -> Result<Self, KernelError> {
        NonNull::new(object)
            .map(|object| Self { object, free })
            .ok_or(KernelError::CannotMake(what))
    }

    /// The object, for the library.
    pub fn get(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `object` came from the library's own alloc, `free` is its counterpart, and nothing else frees it.
        unsafe { (self.free)(self.object.as_ptr()) }
    }
}

/// A text for the library.
pub fn c_text(text: &str) -> Result<CString, KernelError> {
    CString::new(text).map_err(|_| KernelError::CannotMake("a name with a zero byte in it"))
}

/// Appends a message whose payload `build` writes.
fn message(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, build: impl FnOnce(*mut libc::nlmsghdr)) {
    let mut scratch = vec![0u64; SCRATCH_WORDS];
    // SAFETY: the buffer is aligned for a netlink header and far larger than any one message of ours; the header that is
    // returned points to its start, and `build` only appends to it through libnftnl.
    let length = unsafe {
        let header = sys::nftnl_nlmsg_build_hdr(
            scratch.as_mut_ptr().cast::<c_char>(),
            kind,
            u16::from(INET),
            flags,
            sequence,
        );
        build(header.cast());
        (*header).nlmsg_len as usize
    };
    assert!(
        length <= SCRATCH_WORDS * 8,
        "a message of {length} bytes does not fit the scratch buffer"
    );
    bytes.extend(
        scratch
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .take(length.next_multiple_of(4)),
    );
}

fn table() -> Result<Owned<sys::nftnl_table>, KernelError> {
    let name = c_text(TABLE)?;
    // SAFETY: plain allocation; the name is copied by the library.
    unsafe {
        let table = Owned::new(sys::nftnl_table_alloc(), sys::nftnl_table_free, "a table")?;
        sys::nftnl_table_set_u32(table.get(), sys::NFTNL_TABLE_FAMILY as u16, u32::from(INET));
        sys::nftnl_table_set_str(table.get(), sys::NFTNL_TABLE_NAME as u16, name.as_ptr());
        Ok(table)
    }
}

/// Appends "make the table, or change its flags": dormant hooks nothing.
pub fn new_table(bytes: &mut Vec<u8>, sequence: u32, dormant: bool) -> Result<(), KernelError> {
    let table = table()?;
    let comment = userdata::comment(TABLE_COMMENT);
    // SAFETY: the table is alive, and the comment is copied by the library.
    unsafe {
        sys::nftnl_table_set_u32(table.get(), sys::NFTNL_TABLE_FLAGS as u16, u32::from(dormant));
        let data = comment.as_ptr().cast::<c_void>();
        sys::nftnl_table_set_data(
            table.get(),
            sys::NFTNL_TABLE_USERDATA as u16,
            data,
            comment.len() as u32,
        );
    }
    // SAFETY: `message` hands over a header with room, and the table is alive.
    message(bytes, kind::NEW_TABLE, flag::CREATE, sequence, |header| unsafe {
        sys::nftnl_table_nlmsg_build_payload(header.cast(), table.get());
    });
    Ok(())
}

/// Appends "delete the table with all that is in it".
pub fn delete_table(bytes: &mut Vec<u8>, sequence: u32) -> Result<(), KernelError> {
    let table = table()?;
    // SAFETY: `message` hands over a header with room, and the table is alive.
    message(bytes, kind::DELETE_TABLE, 0, sequence, |header| unsafe {
        sys::nftnl_table_nlmsg_build_payload(header.cast(), table.get());
    });
    Ok(())
}

/// Appends "make this chain".
pub fn new_chain(bytes: &mut Vec<u8>, sequence: u32, chain: &Chain) -> Result<(), KernelError> {
    let (table, name, nat) = (c_text(TABLE)?, c_text(&chain.name)?, c_text("nat")?);
    // SAFETY: plain allocation and setters; every text is copied by the library.
    let object = unsafe {
        let object = Owned::new(sys::nftnl_chain_alloc(), sys::nftnl_chain_free, "a chain")?;
        sys::nftnl_chain_set_str(object.get(), sys::NFTNL_CHAIN_TABLE as u16, table.as_ptr());
        sys::nftnl_chain_set_str(object.get(), sys::NFTNL_CHAIN_NAME as u16, name.as_ptr());
        if let Some(hook) = chain.hook {
            sys::nftnl_chain_set_str(object.get(), sys::NFTNL_CHAIN_TYPE as u16, nat.as_ptr());
            sys::nftnl_chain_set_u32(object.get(), sys::NFTNL_CHAIN_HOOKNUM as u16, hook.number);
            sys::nftnl_chain_set_s32(object.get(), sys::NFTNL_CHAIN_PRIO as u16, hook.priority);
            sys::nftnl_chain_set_u32(object.get(), sys::NFTNL_CHAIN_POLICY as u16, libc::NF_ACCEPT as u32);
        }
        object
    };
    // SAFETY: `message` hands over a header with room, and the chain is alive.
    message(bytes, kind::NEW_CHAIN, flag::CREATE, sequence, |header| unsafe {
        sys::nftnl_chain_nlmsg_build_payload(header.cast(), object.get());
    });
    Ok(())
}

/// The number of a key's or data's type, as libnftables numbers its types: six bits a field.
pub fn type_number(fields: &[Field], family: Family) -> u32 {
    fields.iter().fold(0, |number, field| {
        let field = match field {
            Field::Source | Field::Destination if family == Family::V4 => 7,
            Field::Source | Field::Destination => 8,
            Field::Protocol => 12,
            Field::DestinationPort => 13,
            Field::Slot => 4,
            Field::Priority => 23,
        };
        number << 6 | field
    })
}

/// The length of a key or of data in bytes.
pub fn length_of(fields: &[Field], family: Family) -> u32 {
    fields.iter().map(|field| 4 * field.words(family)).sum()
}

/// After how many milliseconds a dynamic map forgets an element whose rule does not say: Kubernetes' default of session
/// affinity.
const DEFAULT_TIMEOUT: u64 = 10_800_000;

/// The flags of a set (`NFT_SET_*`).
pub fn set_flags(set: &Set) -> u32 {
    let mut flags = 0;
    if !set.data.is_empty() {
        flags |= libc::NFT_SET_MAP;
    }
    if set.interval {
        flags |= libc::NFT_SET_INTERVAL;
        if set.key.len() > 1 {
            flags |= NFT_SET_CONCAT;
        }
    }
    if set.dynamic.is_some() {
        flags |= libc::NFT_SET_TIMEOUT | libc::NFT_SET_EVAL;
    }
    flags as u32
}

/// The set's key is a concatenation, whose fields the kernel must know to look for ranges.
const NFT_SET_CONCAT: libc::c_int = 0x80;

/// Appends "delete this set", which must have no elements and no rules that look into it.
pub fn delete_set(bytes: &mut Vec<u8>, sequence: u32, name: &str) -> Result<(), KernelError> {
    let (table, name) = (c_text(TABLE)?, c_text(name)?);
    // SAFETY: plain allocation and setters; texts are copied by the library.
    let object = unsafe {
        let object = Owned::new(sys::nftnl_set_alloc(), sys::nftnl_set_free, "a set")?;
        sys::nftnl_set_set_str(object.get(), sys::NFTNL_SET_TABLE as u16, table.as_ptr());
        sys::nftnl_set_set_str(object.get(), sys::NFTNL_SET_NAME as u16, name.as_ptr());
        object
    };
    // SAFETY: `message` hands over a header with room, and the set is alive.
    message(bytes, kind::DELETE_SET, 0, sequence, |header| unsafe {
        sys::nftnl_set_nlmsg_build_payload(header.cast(), object.get());
    });
    Ok(())
}

/// Appends "delete this chain", which must have no rules and nobody who jumps to it.
pub fn delete_chain(bytes: &mut Vec<u8>, sequence: u32, name: &str) -> Result<(), KernelError> {
    let (table, name) = (c_text(TABLE)?, c_text(name)?);
    // SAFETY: plain allocation and setters; texts are copied by the library.
    let object = unsafe {
        let object = Owned::new(sys::nftnl_chain_alloc(), sys::nftnl_chain_free, "a chain")?;
        sys::nftnl_chain_set_str(object.get(), sys::NFTNL_CHAIN_TABLE as u16, table.as_ptr());
        sys::nftnl_chain_set_str(object.get(), sys::NFTNL_CHAIN_NAME as u16, name.as_ptr());
        object
    };
    // SAFETY: `message` hands over a header with room, and the chain is alive.
    message(bytes, kind::DELETE_CHAIN, 0, sequence, |header| unsafe {
        sys::nftnl_chain_nlmsg_build_payload(header.cast(), object.get());
    });
    Ok(())
}

/// Appends "make this set or map".
pub fn new_set(bytes: &mut Vec<u8>, sequence: u32, set: &Set, id: u32) -> Result<(), KernelError> {
    let (table, name) = (c_text(TABLE)?, c_text(&set.name)?);
    let userdata = userdata::of_set(set);
    // SAFETY: plain allocation and setters; texts and user data are copied by the library.
    let object = unsafe {
        let object = Owned::new(sys::nftnl_set_alloc(), sys::nftnl_set_free, "a set")?;
        let number = |attribute: u32, value: u32| sys::nftnl_set_set_u32(object.get(), attribute as u16, value);
        sys::nftnl_set_set_str(object.get(), sys::NFTNL_SET_TABLE as u16, table.as_ptr());
        sys::nftnl_set_set_str(object.get(), sys::NFTNL_SET_NAME as u16, name.as_ptr());
        number(sys::NFTNL_SET_FAMILY, u32::from(INET));
        number(sys::NFTNL_SET_ID, id);
        number(sys::NFTNL_SET_KEY_TYPE, type_number(&set.key, set.family));
        number(sys::NFTNL_SET_KEY_LEN, length_of(&set.key, set.family));
        number(sys::NFTNL_SET_FLAGS, set_flags(set));
        if set.interval && set.key.len() > 1 {
            let lengths: Vec<u8> = set.key.iter().map(|field| 4 * field.words(set.family) as u8).collect();
            let data = lengths.as_ptr().cast::<c_void>();
            sys::nftnl_set_set_data(
                object.get(),
                sys::NFTNL_SET_DESC_CONCAT as u16,
                data,
                lengths.len() as u32,
            );
        }
        if let Some(size) = set.dynamic {
            number(sys::NFTNL_SET_DESC_SIZE, size);
            sys::nftnl_set_set_u64(object.get(), sys::NFTNL_SET_TIMEOUT as u16, DEFAULT_TIMEOUT);
        }
        if !set.data.is_empty() {
            number(sys::NFTNL_SET_DATA_TYPE, type_number(&set.data, set.family));
            number(sys::NFTNL_SET_DATA_LEN, length_of(&set.data, set.family));
        }
        let data = userdata.as_ptr().cast::<c_void>();
        sys::nftnl_set_set_data(
            object.get(),
            sys::NFTNL_SET_USERDATA as u16,
            data,
            userdata.len() as u32,
        );
        object
    };
    // SAFETY: `message` hands over a header with room, and the set is alive.
    message(bytes, kind::NEW_SET, flag::CREATE, sequence, |header| unsafe {
        sys::nftnl_set_nlmsg_build_payload(header.cast(), object.get());
    });
    Ok(())
}

/// Appends "add this rule at the end of the chain".
pub fn new_rule(bytes: &mut Vec<u8>, sequence: u32, chain: &str, rule: &Rule) -> Result<(), KernelError> {
    let object = rule_object(chain, rule)?;
    // SAFETY: `message` hands over a header with room, and the rule is alive.
    message(
        bytes,
        kind::NEW_RULE,
        flag::CREATE | flag::APPEND,
        sequence,
        |header| unsafe {
            sys::nftnl_rule_nlmsg_build_payload(header.cast(), object.get());
        },
    );
    Ok(())
}

fn rule_object(chain: &str, rule: &Rule) -> Result<Owned<sys::nftnl_rule>, KernelError> {
    let (table, chain) = (c_text(TABLE)?, c_text(chain)?);
    // SAFETY: plain allocation and setters; texts are copied by the library; an expression belongs to the rule once it is
    // added, so it is not freed here.
    unsafe {
        let object = Owned::new(sys::nftnl_rule_alloc(), sys::nftnl_rule_free, "a rule")?;
        sys::nftnl_rule_set_u32(object.get(), sys::NFTNL_RULE_FAMILY as u16, u32::from(INET));
        sys::nftnl_rule_set_str(object.get(), sys::NFTNL_RULE_TABLE as u16, table.as_ptr());
        sys::nftnl_rule_set_str(object.get(), sys::NFTNL_RULE_CHAIN as u16, chain.as_ptr());
        if let Some(comment) = rule.comment {
            let comment = userdata::comment(comment);
            let data = comment.as_ptr().cast::<c_void>();
            sys::nftnl_rule_set_data(
                object.get(),
                sys::NFTNL_RULE_USERDATA as u16,
                data,
                comment.len() as u32,
            );
        }
        for expression in &rule.expressions {
            sys::nftnl_rule_add_expr(object.get(), instruction::of(expression)?.release());
        }
        Ok(object)
    }
}

/// A rule's instructions in libnftnl's own words, for comparing what was meant with what the kernel holds.
pub fn rule_text(rule: &Rule) -> Result<Vec<String>, KernelError> {
    Ok(text_of(&rule_object("", rule)?))
}

/// The instructions of a rule that the kernel dumped; none if they can't be read.
pub fn dumped_rule(whole: &[u8]) -> Option<Vec<String>> {
    let mut aligned = vec![0u64; whole.len().div_ceil(8)];
    for (word, bytes) in aligned.iter_mut().zip(whole.chunks(8)) {
        let mut filled = [0; 8];
        filled[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(filled);
    }
    // SAFETY: the message is whole and aligned; the library reads no further than the length in its header, which
    // `message::received` has checked against the bytes at hand.
    unsafe {
        let rule = Owned::new(sys::nftnl_rule_alloc(), sys::nftnl_rule_free, "a rule").ok()?;
        if sys::nftnl_rule_nlmsg_parse(aligned.as_ptr().cast(), rule.get()) < 0 {
            return None;
        }
        Some(text_of(&rule))
    }
}

fn text_of(rule: &Owned<sys::nftnl_rule>) -> Vec<String> {
    unsafe extern "C" fn collect(expression: *mut sys::nftnl_expr, texts: *mut c_void) -> libc::c_int {
        let mut buffer = [0u8; 512];
        // SAFETY: the library calls this with a live expression and the pointer that was given to it below; it writes no
        // more than the buffer holds and says how much it would have written.
        unsafe {
            let written = sys::nftnl_expr_snprintf(
                buffer.as_mut_ptr().cast::<c_char>(),
                buffer.len(),
                expression,
                sys::NFTNL_OUTPUT_DEFAULT,
                0,
            );
            let length = usize::try_from(written).unwrap_or(0).min(buffer.len());
            let text = String::from_utf8_lossy(&buffer[..length])
                .trim_end_matches(['\0', ' '])
                .to_owned();
            let name = sys::nftnl_expr_get_str(expression, sys::NFTNL_EXPR_NAME as u16);
            let name = if name.is_null() {
                "".into()
            } else {
                CStr::from_ptr(name).to_string_lossy()
            };
            (*texts.cast::<Vec<String>>()).push(format!("{name} {text}"));
        }
        0
    }
    let mut texts: Vec<String> = Vec::new();
    // SAFETY: the rule is alive, and `texts` outlives the call, in which alone it is used.
    unsafe {
        sys::nftnl_expr_foreach(
            rule.get(),
            Some(collect),
            std::ptr::from_mut(&mut texts).cast::<c_void>(),
        );
    }
    texts
}
