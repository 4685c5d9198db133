//! What nf_tables rules are made of: expressions that load a packet's bytes into registers, compare them and decide.

use super::{DATA_VALUE, DATA_VERDICT, JumpMap, LIST_ELEM};
use crate::netlink::message::{Attributes, HEADER, Message, text};

const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const DROP: u32 = 0;

const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const PAYLOAD_REGISTER: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
const META_REGISTER: u16 = 1;
const META_KEY: u16 = 2;
const BITWISE_FROM: u16 = 1;
const BITWISE_TO: u16 = 2;
const BITWISE_LENGTH: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;
const CMP_REGISTER: u16 = 1;
const CMP_OPERATOR: u16 = 2;
const CMP_DATA: u16 = 3;
const LOOKUP_SET: u16 = 1;
const LOOKUP_REGISTER: u16 = 2;
const LOOKUP_TO: u16 = 3;
const IMMEDIATE_REGISTER: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;

/// One expression of a rule: its name, and of its operands those that make it what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    name: String,
    operands: Vec<Vec<u8>>,
}

/// A 16-byte register (`NFT_REG_1` …) that one expression fills and a later one reads. Values longer than a register
/// go on in the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(u32);

impl Register {
    /// The first.
    pub const FIRST: Self = Self(libc::NFT_REG_1 as u32);
}

/// Which of a packet's headers a [`Expressions::payload`] counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Ethernet.
    Link,
    /// IPv4 or IPv6.
    Network,
}

/// The expressions of a rule, in the order in which the kernel works through them.
#[derive(Debug)]
pub struct Expressions(Message);

impl Expressions {
    /// Loads `length` bytes of a header.
    #[must_use]
    pub fn payload(self, to: Register, layer: Layer, offset: u32, length: usize) -> Self {
        let base = match layer {
            Layer::Link => libc::NFT_PAYLOAD_LL_HEADER,
            Layer::Network => libc::NFT_PAYLOAD_NETWORK_HEADER,
        };
        self.and("payload", |data| {
            data.be32(PAYLOAD_REGISTER, to.0)
                .be32(PAYLOAD_BASE, base as u32)
                .be32(PAYLOAD_OFFSET, offset)
                .be32(PAYLOAD_LENGTH, length as u32)
        })
    }

    /// Loads what the kernel knows of a packet (`NFT_META_…`).
    #[must_use]
    pub fn meta(self, to: Register, key: i32) -> Self {
        self.and("meta", |data| data.be32(META_REGISTER, to.0).be32(META_KEY, key as u32))
    }

    /// Keeps the bits of a register that are set in the mask.
    #[must_use]
    pub fn mask(self, register: Register, mask: &[u8]) -> Self {
        let zeros = vec![0; mask.len()];
        self.and("bitwise", |data| {
            data.be32(BITWISE_FROM, register.0)
                .be32(BITWISE_TO, register.0)
                .be32(BITWISE_LENGTH, mask.len() as u32)
                .nest(BITWISE_MASK, |value| value.attr(DATA_VALUE, mask))
                .nest(BITWISE_XOR, |value| value.attr(DATA_VALUE, zeros))
        })
    }

    /// Goes on only if the register holds this.
    #[must_use]
    pub fn equals(self, register: Register, value: &[u8]) -> Self {
        self.compare(register, libc::NFT_CMP_EQ, value)
    }

    /// Goes on only if the register holds something else.
    #[must_use]
    pub fn differs(self, register: Register, value: &[u8]) -> Self {
        self.compare(register, libc::NFT_CMP_NEQ, value)
    }

    /// Jumps to the chain that the map has for the register, if any, and goes on from there when it comes back.
    #[must_use]
    pub fn jump_by(self, register: Register, map: JumpMap<'_>) -> Self {
        self.and("lookup", |data| {
            data.text(LOOKUP_SET, map.name)
                .be32(LOOKUP_REGISTER, register.0)
                .be32(LOOKUP_TO, libc::NFT_REG_VERDICT as u32)
        })
    }

    /// Jumps to a chain.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.decide(|verdict| jump(verdict, chain))
    }

    /// Drops the packet.
    #[must_use]
    pub fn drop(self) -> Self {
        self.decide(|verdict| verdict.be32(VERDICT_CODE, DROP))
    }

    /// Gives the connection the address of the interface it leaves by.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.and("masq", |data| data)
    }

    /// What a rule made of these will read as.
    #[must_use]
    pub fn describe(expressions: impl FnOnce(Self) -> Self) -> Vec<Expression> {
        let list = Self::fill(Message::new(0, 0), expressions).finish(0, 0);
        read(Attributes(list.get(HEADER..).unwrap_or_default()))
    }

    pub(super) fn fill(list: Message, expressions: impl FnOnce(Self) -> Self) -> Message {
        expressions(Self(list)).0
    }

    fn compare(self, register: Register, operator: i32, value: &[u8]) -> Self {
        self.and("cmp", |data| {
            data.be32(CMP_REGISTER, register.0)
                .be32(CMP_OPERATOR, operator as u32)
                .nest(CMP_DATA, |data| data.attr(DATA_VALUE, value))
        })
    }

    fn decide(self, verdict: impl FnOnce(Message) -> Message) -> Self {
        self.and("immediate", |data| {
            data.be32(IMMEDIATE_REGISTER, libc::NFT_REG_VERDICT as u32)
                .nest(IMMEDIATE_DATA, |value| value.nest(DATA_VERDICT, verdict))
        })
    }

    fn and(self, name: &str, data: impl FnOnce(Message) -> Message) -> Self {
        Self(self.0.nest(LIST_ELEM, |expression| expression.text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data)))
    }
}

/// Reads the expressions of a rule.
pub(super) fn read(list: Attributes<'_>) -> Vec<Expression> {
    list.map(|(_, expression)| {
        let expression = Attributes(expression);
        let name = expression.get(EXPRESSION_NAME).map(text).unwrap_or_default();
        let data = expression.nested(EXPRESSION_DATA);
        let plain = |kind| data.get(kind).unwrap_or_default().to_vec();
        let value = |kind| data.nested(kind).get(DATA_VALUE).unwrap_or_default().to_vec();
        let operands = match name.as_str() {
            "payload" => vec![plain(PAYLOAD_BASE), plain(PAYLOAD_OFFSET), plain(PAYLOAD_LENGTH)],
            "meta" => vec![plain(META_KEY)],
            "bitwise" => vec![value(BITWISE_MASK)],
            "cmp" => vec![plain(CMP_OPERATOR), value(CMP_DATA)],
            "lookup" => vec![plain(LOOKUP_SET)],
            "immediate" => {
                let verdict = data.nested(IMMEDIATE_DATA).nested(DATA_VERDICT);
                [VERDICT_CODE, VERDICT_CHAIN].map(|kind| verdict.get(kind).unwrap_or_default().to_vec()).into()
            }
            _ => Vec::new(),
        };
        Expression { name, operands }
    })
    .collect()
}

/// Appends the verdict that jumps to a chain.
pub(super) fn jump(verdict: Message, chain: &str) -> Message {
    verdict.be32(VERDICT_CODE, libc::NFT_JUMP as u32).text(VERDICT_CHAIN, chain)
}

/// The chain that a verdict jumps to.
pub(super) fn jump_target(data: Attributes<'_>) -> Option<String> {
    data.nested(DATA_VERDICT).get(VERDICT_CHAIN).map(text)
}
