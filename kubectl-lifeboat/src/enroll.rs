//! `enroll`: the one command to run on a server. The token goes through standard input, never into a command line.

use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use lifeboat_crds::{ProtectedServer, names::enrollment_secret};

use crate::cluster::{Cluster, PluginError};

#[derive(Args)]
pub(crate) struct Enroll {
    /// The ProtectedServer.
    server: String,
}

/// What the operator puts into the server's enrolment Secret.
struct Invitation {
    token: String,
    management: String,
    pin: String,
    ca: String,
    expires: Timestamp,
}

impl Enroll {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<(), PluginError> {
        let server: ProtectedServer = cluster.get("ProtectedServer", &self.server).await?;
        let name = enrollment_secret(&self.server);
        let secret = cluster.api::<Secret>().get_opt(&name).await;
        let secret =
            secret.map_err(|source| crate::cluster::api(&format!("reading Secret {name}"), source))?;
        let Some(secret) = secret else {
            let waits = server
                .status
                .and_then(|status| status.conditions.into_iter().find(|one| one.type_ == "Ready"));
            let why =
                waits.map_or_else(|| "the operator has not seen it yet".to_owned(), |ready| ready.message);
            return Err(PluginError::refused(
                format!("there is no enrolment token for {} yet", self.server),
                format!("{why} (see `kubectl describe pserver {}`)", self.server),
            ));
        };
        let invitation = invitation(&self.server, &secret, Timestamp::now())?;
        println!("{}", command(&invitation));
        eprintln!(
            "\nRun the lines above on {} as root (with sudo: put it before `sh`). The token works once, until {}.",
            self.server, invitation.expires
        );
        Ok(())
    }
}

fn invitation(server: &str, secret: &Secret, now: Timestamp) -> Result<Invitation, PluginError> {
    let value = |key: &str| -> Option<String> {
        let bytes = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone()).ok().filter(|text| !text.is_empty())
    };
    let again = format!(
        "delete its Secret for a new one: `kubectl delete secret {}` (an agent that is enrolled already is then refused)",
        enrollment_secret(server)
    );
    if value("usedAt").is_some() {
        return Err(PluginError::refused(
            format!("{server} is enrolled already: its token has been used"),
            again,
        ));
    }
    let missing =
        || PluginError::refused(format!("the enrolment Secret of {server} is not complete"), again.clone());
    let expires: Timestamp = value("expiresAt").and_then(|text| text.parse().ok()).ok_or_else(missing)?;
    if expires <= now {
        return Err(PluginError::refused(format!("the token of {server} expired at {expires}"), again));
    }
    let addresses = value("managementAddresses").ok_or_else(missing)?;
    Ok(Invitation {
        token: value("token").ok_or_else(missing)?,
        management: addresses.split_whitespace().next().ok_or_else(missing)?.to_owned(),
        pin: value("managementPublicKey").ok_or_else(missing)?,
        ca: value("ca.crt").ok_or_else(missing)?,
        expires,
    })
}

/// A script through standard input: nothing of it stands in a process list.
fn command(invitation: &Invitation) -> String {
    let Invitation { token, management, pin, ca, expires: _ } = invitation;
    format!(
        r#"sh <<'LIFEBOAT'
set -eu
umask 077
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
cat > "$d/ca.crt" <<'CA'
{ca}
CA
export LIFEBOAT_MANAGEMENT='{management}' LIFEBOAT_CA="$d/ca.crt" LIFEBOAT_PIN='{pin}'
curl -fsS --connect-timeout 10 --cacert "$LIFEBOAT_CA" --pinnedpubkey "$LIFEBOAT_PIN" -o "$d/install.sh" "https://$LIFEBOAT_MANAGEMENT/install.sh"
export LIFEBOAT_ENROLMENT_TOKEN='{token}'
sh "$d/install.sh"
LIFEBOAT"#,
        ca = ca.trim_end()
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(pairs: &[(&str, &str)]) -> Secret {
        let data =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Default::default() }
    }

    const WHOLE: [(&str, &str); 5] = [
        ("token", "s3cret"),
        ("expiresAt", "2026-01-02T00:00:00Z"),
        ("managementAddresses", "10.0.0.1:443 dr.contoso.local:443"),
        ("managementPublicKey", "sha256//abc="),
        ("ca.crt", "CERT\n"),
    ];

    fn refusal(pairs: &[(&str, &str)], now: &str) -> String {
        match invitation("db-1", &secret(pairs), now.parse().unwrap()) {
            Ok(_) => panic!("accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_token_is_in_the_script_and_in_no_command_line() {
        let invitation =
            invitation("db-1", &secret(&WHOLE), "2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
        let script = command(&invitation);
        let lines: Vec<_> = script.lines().filter(|line| line.contains("s3cret")).collect();
        assert_eq!(lines, ["export LIFEBOAT_ENROLMENT_TOKEN='s3cret'"]);
        assert!(script.starts_with("sh <<'LIFEBOAT'\n"), "{script}");
    }

    #[test]
    fn a_used_or_expired_token_says_how_to_get_another() {
        let mut used = WHOLE.to_vec();
        used.push(("usedAt", "2026-01-01T00:00:00Z"));
        for refused in [refusal(&used, "2026-01-01T00:00:00Z"), refusal(&WHOLE, "2026-01-03T00:00:00Z")] {
            assert!(refused.contains("kubectl delete secret db-1-enrollment"), "{refused}");
        }
    }
}
