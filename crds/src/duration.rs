//! A duration as people write it: `15s`, `5m`, `24h`, `1h30m`.
//!
//! A subset of Go's syntax, so that the CEL function `duration()` reads the same text in the API server's rules.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Hours, minutes, seconds, each at most once and in this order; the schema and the parser share it.
pub const PATTERN: &str = "^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$";

/// A span of whole seconds, written `15s`, `5m`, `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(std::time::Duration);

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a duration: write whole hours, minutes and seconds in this order, such as 15s, 5m or 1h30m"
)]
pub struct InvalidDuration {
    text: String,
}

impl Duration {
    /// A duration of `seconds`.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }

    /// A duration of `minutes`.
    pub const fn from_mins(minutes: u64) -> Self {
        Self::from_secs(minutes * 60)
    }

    /// For timers.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    /// Whole seconds.
    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration { text: text.to_owned() };
        let mut seconds = 0_u64;
        let mut rest = text;
        for (unit, factor) in [('h', 3600), ('m', 60), ('s', 1)] {
            let Some((number, after)) = rest.split_once(unit) else { continue };
            if number.is_empty() || number.len() > 5 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(invalid());
            }
            seconds += number.parse::<u64>().map_err(|_| invalid())? * factor;
            rest = after;
        }
        if text.is_empty() || !rest.is_empty() {
            return Err(invalid());
        }
        Ok(Self::from_secs(seconds))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.as_secs();
        let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if seconds > 0 || total == 0 {
            write!(f, "{seconds}s")?;
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 2, "maxLength": 18, "pattern": PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("15s", 15)]
    #[case("5m", 300)]
    #[case("24h", 86_400)]
    #[case("1h30m", 5400)]
    #[case("1h1s", 3601)]
    #[case("0s", 0)]
    #[case("90m", 5400)]
    fn reads_what_people_write(#[case] text: &str, #[case] seconds: u64) {
        assert_eq!(text.parse(), Ok(Duration::from_secs(seconds)));
    }

    #[rstest]
    #[case("")]
    #[case("15")]
    #[case("s")]
    #[case("5 m")]
    #[case("-5m")]
    #[case("5m1h")]
    #[case("1m1m")]
    #[case("1.5h")]
    #[case("500ms")]
    #[case("1d")]
    #[case("123456s")]
    fn refuses_the_rest_and_shows_what_is_allowed(#[case] text: &str) {
        let error = text.parse::<Duration>().unwrap_err().to_string();
        assert!(error.contains("such as 15s, 5m or 1h30m"), "{error}");
    }

    #[rstest]
    #[case(0, "0s")]
    #[case(15, "15s")]
    #[case(3600, "1h")]
    #[case(5401, "1h30m1s")]
    fn prints_what_it_would_read(#[case] seconds: u64, #[case] text: &str) {
        let duration = Duration::from_secs(seconds);
        assert_eq!(duration.to_string(), text);
        assert_eq!(text.parse(), Ok(duration));
    }
}
