//! Whether an agent is the one that this process server serves. Pure.
//!
//! By the digest of what it runs; an agent from before that field is only judged by its version, and only when that is
//! older. Nothing depends on it: it is a hint to a person.

use lifeboat_replication::wire::v1;

/// The agent that this process server serves. Both are of one build.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// `None`: the image holds none.
    pub sha256: Option<[u8; 32]>,
    pub version: &'static str,
}

impl Served {
    pub fn judge(&self, heartbeat: Option<&v1::Heartbeat>) -> v1::AgentProgram {
        let (Some(served), Some(heartbeat)) = (&self.sha256, heartbeat) else {
            return v1::AgentProgram::Unspecified;
        };
        match &*heartbeat.agent_sha256 {
            runs if runs == served => v1::AgentProgram::Served,
            runs if runs.len() == served.len() => v1::AgentProgram::Other,
            _ if is_older(&heartbeat.agent_version, self.version) => v1::AgentProgram::Other,
            _ => v1::AgentProgram::Unspecified,
        }
    }
}

/// What is no version is not called older.
fn is_older(one: &str, other: &str) -> bool {
    numbers(one).zip(numbers(other)).is_some_and(|(one, other)| one < other)
}

/// Major, minor, patch. What comes before a release counts as the release.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let release = version.split(['-', '+']).next()?;
    let numbers = release.split('.').map(str::parse).collect::<Result<Vec<_>, _>>().ok()?;
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use v1::AgentProgram::{Other, Served as Same, Unspecified};

    use super::*;

    fn judged(sha256: &[u8], version: &str) -> v1::AgentProgram {
        let served = Served { sha256: Some([7; 32]), version: "0.10.0" };
        let heartbeat = v1::Heartbeat {
            agent_sha256: sha256.to_vec(),
            agent_version: version.to_owned(),
            ..Default::default()
        };
        served.judge(Some(&heartbeat))
    }

    #[test]
    fn the_digest_decides_whatever_the_versions_say() {
        assert_eq!(judged(&[7; 32], "0.9.0"), Same);
        assert_eq!(judged(&[8; 32], "0.10.0"), Other);
        assert_eq!(judged(&[8; 32], "0.11.0"), Other, "the appliance went back");
    }

    #[test]
    fn an_agent_that_sends_no_digest_is_called_outdated_only_when_its_version_is_older() {
        for older in ["0.9.9", "0.9.10", "0.0.1", "0.9.0-rc.1"] {
            assert_eq!(judged(&[], older), Other, "{older}");
        }
        for other in ["0.10.0", "0.10.0-rc.1", "0.10.1", "1.0.0", "", "0.9", "nine", "0.9.0.1", "-1.0.0"] {
            assert_eq!(judged(&[], other), Unspecified, "{other}");
        }
        // What is no SHA-256 is no digest.
        assert_eq!((judged(&[7; 31], "0.10.0"), judged(&[7; 33], "0.9.0")), (Unspecified, Other));
    }

    #[test]
    fn nothing_is_said_of_an_agent_that_was_not_heard_or_when_none_is_served() {
        let heartbeat = v1::Heartbeat { agent_version: "0.0.1".to_owned(), ..Default::default() };
        let served = Served { sha256: None, version: "0.10.0" };
        assert_eq!(served.judge(Some(&heartbeat)), Unspecified);
        assert_eq!(Served { sha256: Some([7; 32]), ..served }.judge(None), Unspecified);
    }
}
