//! The methods of Cedar's extension types: ip addresses, decimals, moments and durations.

use super::code::{Binary, Range, Unary};
use super::evaluate::{Failure, Value};
use std::net::IpAddr;

const DAY_MS: i64 = 86_400_000;

/// A method without an argument.
pub(super) fn unary<'a>(method: Unary, of: Value<'a>) -> Result<Value<'a>, Failure<'a>> {
    Ok(match (method, of) {
        (Unary::IsIpv4, Value::Address(range)) => Value::Boolean(range.address.is_ipv4()),
        (Unary::IsIpv6, Value::Address(range)) => Value::Boolean(range.address.is_ipv6()),
        // A range is one of loopback or multicast addresses only if all of it is.
        (Unary::IsLoopback, Value::Address(Range { address, prefix })) => {
            Value::Boolean(address.is_loopback() && prefix >= if address.is_ipv4() { 8 } else { 128 })
        }
        (Unary::IsMulticast, Value::Address(Range { address, prefix })) => {
            Value::Boolean(address.is_multicast() && prefix >= if address.is_ipv4() { 4 } else { 8 })
        }
        (Unary::ToDate, Value::Datetime(moment)) => {
            Value::Datetime(moment.checked_sub(moment.rem_euclid(DAY_MS)).ok_or(Failure::Overflow)?)
        }
        (Unary::ToTime, Value::Datetime(moment)) => Value::Duration(moment.rem_euclid(DAY_MS)),
        (Unary::ToMilliseconds, Value::Duration(length)) => Value::Long(length),
        (Unary::ToSeconds, Value::Duration(length)) => Value::Long(length / 1000),
        (Unary::ToMinutes, Value::Duration(length)) => Value::Long(length / 60_000),
        (Unary::ToHours, Value::Duration(length)) => Value::Long(length / 3_600_000),
        (Unary::ToDays, Value::Duration(length)) => Value::Long(length / DAY_MS),
        _ => return Err(Failure::Type),
    })
}

/// A method with one argument.
pub(super) fn binary<'a>(method: Binary, two: (Value<'a>, Value<'a>)) -> Result<Value<'a>, Failure<'a>> {
    Ok(match (method, two) {
        (Binary::IsInRange, (Value::Address(inner), Value::Address(outer))) => Value::Boolean(inner.is_in(outer)),
        (Binary::Offset, (Value::Datetime(moment), Value::Duration(length))) => {
            Value::Datetime(moment.checked_add(length).ok_or(Failure::Overflow)?)
        }
        (Binary::DurationSince, (Value::Datetime(later), Value::Datetime(earlier))) => {
            Value::Duration(later.checked_sub(earlier).ok_or(Failure::Overflow)?)
        }
        (Binary::DecimalLess, (Value::Decimal(a), Value::Decimal(b))) => Value::Boolean(a < b),
        (Binary::DecimalLessOrEqual, (Value::Decimal(a), Value::Decimal(b))) => Value::Boolean(a <= b),
        (Binary::DecimalGreater, (Value::Decimal(a), Value::Decimal(b))) => Value::Boolean(a > b),
        (Binary::DecimalGreaterOrEqual, (Value::Decimal(a), Value::Decimal(b))) => Value::Boolean(a >= b),
        _ => return Err(Failure::Type),
    })
}

impl Range {
    /// One address. An IPv4 caller on a dual-stack socket must match IPv4 ranges.
    pub(crate) fn only(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The first `prefix` bits of the address, at the left; the others are 0.
    pub(crate) fn bits(&self, prefix: u8) -> u128 {
        let all = match self.address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        all & u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0)
    }

    /// Whether all of it lies in `outer`: of the same family, no wider, and equal where `outer` counts.
    fn is_in(&self, outer: Self) -> bool {
        self.address.is_ipv4() == outer.address.is_ipv4()
            && self.prefix >= outer.prefix
            && self.bits(outer.prefix) == outer.bits(outer.prefix)
    }
}
