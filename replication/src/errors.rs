//! Errors as people read them: once, with their causes, by whoever handles them.

use std::error::Error;

/// An error with its causes. What stands in the text already is left out: transparent errors repeat their cause.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Told {
        #[error("no answer")]
        Inner,
        #[error("{0}")]
        Same(#[source] Box<Told>),
        #[error("the vault cannot be read")]
        Outer(#[source] Box<Told>),
    }

    #[test]
    fn causes_are_told_in_order_and_none_twice() {
        let error = Told::Outer(Box::new(Told::Same(Box::new(Told::Inner))));
        assert_eq!(chain(&error), "the vault cannot be read: no answer");
    }
}
