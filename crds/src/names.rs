//! Labels, annotations, finalizers and derived names that more than one program must agree on.

/// Set to `"true"` on an object that is being deleted: let go without clean-up.
pub const ABANDON_ANNOTATION: &str = "lifeboat.dev/abandon";
/// On a ProtectedServer: the id of the rollback of its vault that somebody has seen to (`status.rollback.id`).
pub const ACKNOWLEDGE_ROLLBACK_ANNOTATION: &str = "lifeboat.dev/acknowledge-rollback";
/// Held by kinds whose deletion needs work outside the cluster or in it.
pub const FINALIZER: &str = "lifeboat.dev/cleanup";
/// On every object that the operator makes: the value is [`MANAGER`].
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Who made it.
pub const MANAGER: &str = "lifeboat-operator";
/// On objects made for an appliance: its name.
pub const APPLIANCE_LABEL: &str = "lifeboat.dev/appliance";
/// On objects made for a protected server: its name.
pub const SERVER_LABEL: &str = "lifeboat.dev/server";
/// On objects made for a run: its name.
pub const RUN_LABEL: &str = "lifeboat.dev/run";
/// On objects made for a run: its UID, so that a run of the same name later does not adopt them.
pub const RUN_UID_LABEL: &str = "lifeboat.dev/run-uid";
/// On objects made for a step of a run: the step's name (an annotation, since it may hold a slash).
pub const STEP_ANNOTATION: &str = "lifeboat.dev/step";
/// On objects made for a step of a run: the attempt.
pub const ATTEMPT_LABEL: &str = "lifeboat.dev/attempt";

/// Secret with a server's one-time enrolment token.
pub fn enrollment_secret(server: &str) -> String {
    format!("{server}-enrollment")
}

/// The name of a person's answer to one attempt of one step, so that a second answer is `AlreadyExists`.
///
/// The user's name is hashed (FNV-1a, 64 bits): it may hold characters that no object name may.
pub fn approval(run: &str, step: &str, attempt: u32, username: &str) -> String {
    let hash = username.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let step: String =
        step.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    // 253 is the limit of an object name: attempt, hash and separators need at most 29.
    let stem: String = format!("{run}-{step}").chars().take(220).collect();
    format!("{stem}-{attempt}-{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_approval_name_is_the_same_for_the_same_answer_and_differs_by_user_and_attempt() {
        let name = approval("erp-run-7", "sign-off", 1, "alice@contoso.com");
        assert_eq!(name, approval("erp-run-7", "sign-off", 1, "alice@contoso.com"));
        assert_ne!(name, approval("erp-run-7", "sign-off", 2, "alice@contoso.com"));
        assert_ne!(name, approval("erp-run-7", "sign-off", 1, "bob@contoso.com"));
    }

    #[test]
    fn an_approval_name_is_a_legal_object_name_however_long_its_parts_are() {
        let name = approval(&"r".repeat(253), "database/db-1/Start", u32::MAX, "system:serviceaccount:x:y");
        assert!(name.len() <= 253, "{}", name.len());
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
    }
}
