//! What a translated policy consists of.

use crate::facts::CONNECT;
use std::net::IpAddr;

/// A fact of the question, named once at load.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fact {
    Principal,
    PrincipalId,
    TrustDomain,
    Namespace,
    Account,
    Action,
    Resource,
    ResourceNamespace,
    ResourceName,
    User,
    Issuer,
    Subject,
    Scopes,
    /// A declared attribute of the user.
    Attribute(Box<str>),
    /// `context`, `context.request` and `context.source`: always there.
    Frame,
    Path,
    Host,
    /// The headers as a whole: to ask whether there are any.
    Headers,
    Header(Box<str>),
    /// The body as a whole: to ask whether there is one.
    Body,
    /// A declared field of the body.
    Field(Box<str>),
    Address,
    Country,
    Now,
}

impl Fact {
    /// As a policy writes it.
    pub(crate) fn text(&self) -> String {
        let fixed = match self {
            Self::Principal => "principal",
            Self::PrincipalId => "principal.id",
            Self::TrustDomain => "principal.trust_domain",
            Self::Namespace => "principal.namespace",
            Self::Account => "principal.account",
            Self::Action => "action",
            Self::Resource => "resource",
            Self::ResourceNamespace => "resource.namespace",
            Self::ResourceName => "resource.name",
            Self::User => "context.user",
            Self::Issuer => "context.user.issuer",
            Self::Subject => "context.user.subject",
            Self::Scopes => "context.user.scopes",
            Self::Frame => "context",
            Self::Path => "context.request.path",
            Self::Host => "context.request.host",
            Self::Headers => "context.request.headers",
            Self::Body => "context.request.body",
            Self::Address => "context.source.address",
            Self::Country => "context.source.country",
            Self::Now => "context.now",
            Self::Attribute(name) => return format!("context.user[{name:?}]"),
            Self::Header(name) => return format!("context.request.headers[{name:?}]"),
            Self::Field(name) => return format!("context.request.body[{name:?}]"),
        };
        fixed.to_owned()
    }

    /// Whether reading it can fail although the validator proved every attribute to be there or asked for: a body can be unreadable, and
    /// an opaque connection has no request.
    fn can_fail(&self, action: &str) -> bool {
        match self {
            Self::Body | Self::Field(_) => true,
            Self::Path | Self::Host | Self::Headers | Self::Header(_) => action == CONNECT,
            _ => false,
        }
    }
}

/// The types of entities that the schema has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Workload,
    Service,
    User,
    Role,
    Action,
    Namespace,
}

/// An address, or a range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) address: IpAddr,
    /// Leading bits that count.
    pub(crate) prefix: u8,
}

/// An expression. Every node gives what Cedar's of the same name gives, and fails where Cedar's fails.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Code {
    Boolean(bool),
    Long(i64),
    Text(Box<str>),
    Entity(Kind, Box<str>),
    /// Ten-thousandths.
    Decimal(i64),
    Address(Range),
    /// Milliseconds since 1970.
    Datetime(i64),
    /// Milliseconds.
    Duration(i64),
    /// A set of texts, sorted, each once.
    Texts(Box<[Box<str>]>),
    /// A set of anything.
    Set(Box<[Code]>),
    Fact(Fact),
    /// Whether all `facts` are there, one within the other, and the first within `of`, which must be there.
    Has {
        of: Fact,
        facts: Box<[Fact]>,
    },
    /// `fact == "text"`.
    Says(Fact, Box<str>),
    /// `context.user in [Role::…]`.
    UserIn(Box<[Box<str>]>),
    Not(Box<Code>),
    And(Box<[Code]>),
    Or(Box<[Code]>),
    /// Condition, then, else.
    If(Box<[Code; 3]>),
    Equal(Box<[Code; 2]>),
    Less(Box<[Code; 2]>),
    LessOrEqual(Box<[Code; 2]>),
    Arithmetic(Arithmetic, Box<[Code; 2]>),
    Negate(Box<Code>),
    In(Box<[Code; 2]>),
    Contains(Box<[Code; 2]>),
    ContainsAll(Box<[Code; 2]>),
    ContainsAny(Box<[Code; 2]>),
    IsEmpty(Box<Code>),
    Like(Box<Code>, Pattern),
    Is(Box<Code>, Kind),
    /// A method of an extension type without an argument.
    Unary(Unary, Box<Code>),
    /// A method of an extension type with one.
    Binary(Binary, Box<[Code; 2]>),
}

/// The operations on `Long` that overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    IsIpv4,
    IsIpv6,
    IsLoopback,
    IsMulticast,
    ToDate,
    ToTime,
    ToMilliseconds,
    ToSeconds,
    ToMinutes,
    ToHours,
    ToDays,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    IsInRange,
    Offset,
    DurationSince,
    DecimalLess,
    DecimalLessOrEqual,
    DecimalGreater,
    DecimalGreaterOrEqual,
}

impl Code {
    /// Whether evaluation for this action can fail for a policy that the validator took. Only where nothing before can fail may a
    /// policy be left out because of a later condition.
    pub(crate) fn can_fail(&self, action: &str) -> bool {
        let any = |parts: &[Self]| parts.iter().any(|part| part.can_fail(action));
        match self {
            Self::Fact(fact) | Self::Says(fact, _) => fact.can_fail(action),
            Self::Has { of, facts } => of.can_fail(action) || facts.iter().any(|fact| fact.can_fail(action)),
            Self::Arithmetic(..) | Self::Negate(_) => true,
            Self::Binary(Binary::Offset | Binary::DurationSince, _) | Self::Unary(Unary::ToDate, _) => true,
            Self::Not(one) | Self::IsEmpty(one) | Self::Like(one, _) | Self::Is(one, _) | Self::Unary(_, one) => {
                one.can_fail(action)
            }
            Self::And(parts) | Self::Or(parts) | Self::Set(parts) => any(parts),
            Self::If(three) => any(three.as_slice()),
            Self::Equal(two)
            | Self::Less(two)
            | Self::LessOrEqual(two)
            | Self::In(two)
            | Self::Contains(two)
            | Self::ContainsAll(two)
            | Self::ContainsAny(two)
            | Self::Binary(_, two) => any(two.as_slice()),
            _ => false,
        }
    }
}

/// A text with `*` for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// What stands between the stars. One piece alone: no star.
    pub(crate) pieces: Box<[Box<str>]>,
}

impl Pattern {
    /// Whether the whole text is of this pattern. Cost: linear for one star, at worst pattern times text.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let (first, last, middle) = match &*self.pieces {
            [] => return text.is_empty(),
            [only] => return &**only == text,
            [first, middle @ .., last] => (first, last, middle),
        };
        let Some(mut rest) = text.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last)) else { return false };
        // The leftmost place leaves most for the pieces behind it.
        for piece in middle {
            match rest.split_once(&**piece) {
                Some((_, behind)) => rest = behind,
                None => return false,
            }
        }
        true
    }
}
