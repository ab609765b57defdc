//! Rules' instructions through libnftnl.
#![expect(unsafe_code, reason = "libnftnl is a C library; every block says why it is sound")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "constants of C headers: attribute numbers below 100, and lengths of a few hundred bytes"
)]

use std::ffi::c_void;

use nftfleet_domain::service::Family;
use nftnl_sys as sys;
use nftnl_sys::libc;

use super::object::{Owned, c_text};
use crate::dataplane::expression::{Base, Comparison, CtKey, DynamicOperation, Expression, MetaKey, Verdict};
use crate::dataplane::kernel::KernelError;

/// An expression of libnftnl under construction: freed unless a rule takes it.
pub struct Instruction(Owned<sys::nftnl_expr>);

impl Instruction {
    fn new(name: &'static str) -> Result<Self, KernelError> {
        let text = c_text(name)?;
        // SAFETY: plain allocation by the expression's name.
        let object = unsafe { sys::nftnl_expr_alloc(text.as_ptr()) };
        Ok(Self(Owned::new(object, sys::nftnl_expr_free, name)?))
    }

    /// Hands the expression to whoever frees it from now on.
    pub fn release(self) -> *mut sys::nftnl_expr {
        let object = self.0.get();
        std::mem::forget(self.0);
        object
    }

    fn number(self, attribute: u32, value: u32) -> Self {
        // SAFETY: the expression is alive, and the attribute is one of its own numbers.
        unsafe { sys::nftnl_expr_set_u32(self.0.get(), attribute as u16, value) }
        self
    }

    fn long(self, attribute: u32, value: u64) -> Self {
        // SAFETY: the expression is alive, and the attribute is one of its own 64-bit numbers.
        unsafe { sys::nftnl_expr_set_u64(self.0.get(), attribute as u16, value) }
        self
    }

    fn bytes(self, attribute: u32, value: &[u8]) -> Self {
        // SAFETY: the expression is alive, and the bytes are copied by the library.
        unsafe {
            sys::nftnl_expr_set(
                self.0.get(),
                attribute as u16,
                value.as_ptr().cast::<c_void>(),
                value.len() as u32,
            );
        }
        self
    }

    fn text(self, attribute: u32, value: &str) -> Result<Self, KernelError> {
        let value = c_text(value)?;
        // SAFETY: the expression is alive, and the text is copied by the library.
        unsafe {
            sys::nftnl_expr_set_str(self.0.get(), attribute as u16, value.as_ptr());
        }
        Ok(self)
    }
}

/// The instruction for an expression.
pub fn of(expression: &Expression) -> Result<Instruction, KernelError> {
    match expression {
        Expression::LoadPayload { .. }
        | Expression::LoadMeta { .. }
        | Expression::LoadCt { .. }
        | Expression::LoadSourceKind { .. }
        | Expression::Random { .. }
        | Expression::Immediate { .. } => load(expression),
        Expression::Compare { .. }
        | Expression::Bitwise { .. }
        | Expression::ByteOrder { .. }
        | Expression::Hash { .. }
        | Expression::Lookup { .. } => compute(expression),
        Expression::SetMeta { key, register } => Ok(meta(*key)?.number(sys::NFTNL_EXPR_META_SREG, *register)),
        Expression::Dynamic {
            operation,
            set,
            key,
            data,
            timeout,
        } => dynamic(*operation, set, [*key, *data], *timeout),
        Expression::Dnat { family, address, port } => dnat(*family, *address, *port),
        Expression::MasqueradeFullyRandom => {
            Ok(Instruction::new("masq")?.number(sys::NFTNL_EXPR_MASQ_FLAGS, NAT_FULLY_RANDOM))
        }
        Expression::RejectTcpReset => reject(libc::NFT_REJECT_TCP_RST as u32, 0),
        Expression::RejectPortUnreachable => reject(
            libc::NFT_REJECT_ICMPX_UNREACH as u32,
            libc::NFT_REJECT_ICMPX_PORT_UNREACH as u32,
        ),
        Expression::Verdict(verdict) => self::verdict(verdict),
    }
}

/// What puts a value into a register.
fn load(expression: &Expression) -> Result<Instruction, KernelError> {
    Ok(match expression {
        Expression::LoadPayload {
            base,
            offset,
            length,
            register,
        } => {
            let base = match base {
                Base::Network => libc::NFT_PAYLOAD_NETWORK_HEADER,
                Base::Transport => libc::NFT_PAYLOAD_TRANSPORT_HEADER,
            };
            Instruction::new("payload")?
                .number(sys::NFTNL_EXPR_PAYLOAD_BASE, base as u32)
                .number(sys::NFTNL_EXPR_PAYLOAD_OFFSET, *offset)
                .number(sys::NFTNL_EXPR_PAYLOAD_LEN, *length)
                .number(sys::NFTNL_EXPR_PAYLOAD_DREG, *register)
        }
        Expression::LoadMeta { key, register } => meta(*key)?.number(sys::NFTNL_EXPR_META_DREG, *register),
        Expression::LoadCt {
            key: CtKey::Status,
            register,
        } => Instruction::new("ct")?
            .number(sys::NFTNL_EXPR_CT_KEY, libc::NFT_CT_STATUS as u32)
            .number(sys::NFTNL_EXPR_CT_DREG, *register),
        Expression::LoadSourceKind { register } => Instruction::new("fib")?
            .number(sys::NFTNL_EXPR_FIB_DREG, *register)
            .number(sys::NFTNL_EXPR_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
            .number(sys::NFTNL_EXPR_FIB_FLAGS, NFTA_FIB_F_SADDR),
        Expression::Random {
            modulus,
            offset,
            register,
        } => Instruction::new("numgen")?
            .number(sys::NFTNL_EXPR_NG_DREG, *register)
            .number(sys::NFTNL_EXPR_NG_MODULUS, *modulus)
            .number(sys::NFTNL_EXPR_NG_TYPE, libc::NFT_NG_RANDOM as u32)
            .number(sys::NFTNL_EXPR_NG_OFFSET, *offset),
        Expression::Immediate { register, value } => Instruction::new("immediate")?
            .number(sys::NFTNL_EXPR_IMM_DREG, *register)
            .bytes(sys::NFTNL_EXPR_IMM_DATA, value),
        _ => return Err(KernelError::CannotMake("an instruction that loads")),
    })
}

/// What works on registers.
fn compute(expression: &Expression) -> Result<Instruction, KernelError> {
    Ok(match expression {
        Expression::Compare {
            register,
            comparison,
            value,
        } => {
            let operator = match comparison {
                Comparison::Equal => libc::NFT_CMP_EQ,
                Comparison::NotEqual => libc::NFT_CMP_NEQ,
            };
            Instruction::new("cmp")?
                .number(sys::NFTNL_EXPR_CMP_SREG, *register)
                .number(sys::NFTNL_EXPR_CMP_OP, operator as u32)
                .bytes(sys::NFTNL_EXPR_CMP_DATA, value)
        }
        Expression::Bitwise { register, mask, xor } => Instruction::new("bitwise")?
            .number(sys::NFTNL_EXPR_BITWISE_SREG, *register)
            .number(sys::NFTNL_EXPR_BITWISE_DREG, *register)
            .number(sys::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)
            .number(sys::NFTNL_EXPR_BITWISE_OP, 0)
            .bytes(sys::NFTNL_EXPR_BITWISE_MASK, mask)
            .bytes(sys::NFTNL_EXPR_BITWISE_XOR, xor),
        Expression::ByteOrder { register, length, size } => Instruction::new("byteorder")?
            .number(sys::NFTNL_EXPR_BYTEORDER_SREG, *register)
            .number(sys::NFTNL_EXPR_BYTEORDER_DREG, *register)
            .number(sys::NFTNL_EXPR_BYTEORDER_OP, libc::NFT_BYTEORDER_HTON as u32)
            .number(sys::NFTNL_EXPR_BYTEORDER_LEN, *length)
            .number(sys::NFTNL_EXPR_BYTEORDER_SIZE, *size),
        Expression::Hash {
            from,
            length,
            modulus,
            seed,
            register,
        } => Instruction::new("hash")?
            .number(sys::NFTNL_EXPR_HASH_SREG, *from)
            .number(sys::NFTNL_EXPR_HASH_DREG, *register)
            .number(sys::NFTNL_EXPR_HASH_LEN, *length)
            .number(sys::NFTNL_EXPR_HASH_MODULUS, *modulus)
            .number(sys::NFTNL_EXPR_HASH_SEED, *seed)
            .number(sys::NFTNL_EXPR_HASH_OFFSET, 0)
            .number(sys::NFTNL_EXPR_HASH_TYPE, NFT_HASH_JENKINS),
        Expression::Lookup {
            register,
            set,
            into,
            inverted,
        } => {
            let lookup = Instruction::new("lookup")?
                .number(sys::NFTNL_EXPR_LOOKUP_SREG, *register)
                .number(sys::NFTNL_EXPR_LOOKUP_FLAGS, u32::from(*inverted))
                .text(sys::NFTNL_EXPR_LOOKUP_SET, set)?;
            match into {
                Some(into) => lookup.number(sys::NFTNL_EXPR_LOOKUP_DREG, *into),
                None => lookup,
            }
        }
        _ => return Err(KernelError::CannotMake("an instruction that computes")),
    })
}

fn dynamic(
    operation: DynamicOperation,
    set: &str,
    [key, data]: [u32; 2],
    timeout: u64,
) -> Result<Instruction, KernelError> {
    let operation = match operation {
        DynamicOperation::Update => libc::NFT_DYNSET_OP_UPDATE as u32,
        DynamicOperation::Delete => NFT_DYNSET_OP_DELETE,
    };
    let dynamic = Instruction::new("dynset")?
        .number(sys::NFTNL_EXPR_DYNSET_OP, operation)
        .number(sys::NFTNL_EXPR_DYNSET_SREG_KEY, key)
        .number(sys::NFTNL_EXPR_DYNSET_SREG_DATA, data)
        .text(sys::NFTNL_EXPR_DYNSET_SET_NAME, set)?;
    Ok(dynamic.long(sys::NFTNL_EXPR_DYNSET_TIMEOUT, timeout))
}

fn dnat(family: Family, address: u32, port: u32) -> Result<Instruction, KernelError> {
    let family = match family {
        Family::V4 => libc::NFPROTO_IPV4,
        Family::V6 => libc::NFPROTO_IPV6,
    };
    Ok(Instruction::new("nat")?
        .number(sys::NFTNL_EXPR_NAT_TYPE, libc::NFT_NAT_DNAT as u32)
        .number(sys::NFTNL_EXPR_NAT_FAMILY, family as u32)
        .number(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, address)
        .number(sys::NFTNL_EXPR_NAT_REG_ADDR_MAX, address)
        .number(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, port)
        .number(sys::NFTNL_EXPR_NAT_REG_PROTO_MAX, port)
        .number(sys::NFTNL_EXPR_NAT_FLAGS, NAT_MAPS_ADDRESS_AND_PORT))
}

fn verdict(verdict: &Verdict) -> Result<Instruction, KernelError> {
    let (number, chain) = match verdict {
        Verdict::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Drop => (libc::NF_DROP, None),
    };
    let verdict = Instruction::new("immediate")?
        .number(sys::NFTNL_EXPR_IMM_DREG, libc::NFT_REG_VERDICT as u32)
        .number(sys::NFTNL_EXPR_IMM_VERDICT, number as u32);
    match chain {
        Some(chain) => verdict.text(sys::NFTNL_EXPR_IMM_CHAIN, chain),
        None => Ok(verdict),
    }
}

/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`. The kernel sets them by itself, as it fills in the upper ends of the
/// ranges and the lookup's flags; said here too, so that what is written equals what is read back.
const NAT_MAPS_ADDRESS_AND_PORT: u32 = 0x3;

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const NAT_FULLY_RANDOM: u32 = 0x10;

/// Constants of the kernel's header that the library does not have. The kernel can delete from a map since 5.4.
const NFT_DYNSET_OP_DELETE: u32 = 2;
const NFT_HASH_JENKINS: u32 = 0;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_SADDR: u32 = 1;

fn meta(key: MetaKey) -> Result<Instruction, KernelError> {
    let key = match key {
        MetaKey::Family => libc::NFT_META_NFPROTO,
        MetaKey::Protocol => libc::NFT_META_L4PROTO,
        MetaKey::Mark => libc::NFT_META_MARK,
        MetaKey::Priority => libc::NFT_META_PRIORITY,
        MetaKey::InputName => libc::NFT_META_IIFNAME,
    };
    Ok(Instruction::new("meta")?.number(sys::NFTNL_EXPR_META_KEY, key as u32))
}

fn reject(kind: u32, code: u32) -> Result<Instruction, KernelError> {
    let reject = Instruction::new("reject")?.number(sys::NFTNL_EXPR_REJECT_TYPE, kind);
    let code = u8::try_from(code).unwrap_or(u8::MAX);
    // SAFETY: the expression is alive, and the code is its only 8-bit attribute.
    unsafe { sys::nftnl_expr_set_u8(reject.0.get(), sys::NFTNL_EXPR_REJECT_CODE as u16, code) }
    Ok(reject)
}
