//! The text in which LVM writes its metadata: `name { … }` and `key = value`, values being numbers, texts and lists. Pure.

use std::collections::BTreeMap;

/// LVM's own goes four deep.
const DEEPEST: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) values: BTreeMap<String, Value>,
    pub(super) sections: BTreeMap<String, Section>,
}

impl Section {
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        match self.values.get(key) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Of a list, or the one that stands alone.
    pub(super) fn texts(&self, key: &str) -> impl Iterator<Item = &str> {
        let all = match self.values.get(key) {
            Some(Value::List(list)) => &list[..],
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        all.iter().filter_map(|value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }
}

/// `None`: it is not such a text, or a name stands in it twice.
pub(super) fn parse(text: &str) -> Option<Section> {
    let mut rest = text;
    let section = section(&mut rest, DEEPEST)?;
    skip(&mut rest);
    rest.is_empty().then_some(section)
}

/// Spaces and comments.
fn skip(rest: &mut &str) {
    loop {
        *rest = rest.trim_start();
        let Some(comment) = rest.strip_prefix('#') else { return };
        *rest = comment.split_once('\n').map_or("", |(_, after)| after);
    }
}

fn take(rest: &mut &str, sign: char) -> bool {
    skip(rest);
    rest.strip_prefix(sign).map(|after| *rest = after).is_some()
}

/// Up to the brace that ends it, or the end of the text.
fn section(rest: &mut &str, depth: usize) -> Option<Section> {
    let mut found = Section::default();
    loop {
        skip(rest);
        if rest.is_empty() || rest.starts_with('}') {
            return Some(found);
        }
        let is_name = |sign: char| sign.is_ascii_alphanumeric() || "_.+-".contains(sign);
        let (name, after) = rest.split_at(rest.find(|sign| !is_name(sign))?);
        *rest = after;
        let twice = if take(rest, '{') {
            let inner = section(rest, depth.checked_sub(1)?)?;
            if !take(rest, '}') {
                return None;
            }
            found.sections.insert(name.to_owned(), inner).is_some()
        } else if take(rest, '=') {
            found.values.insert(name.to_owned(), value(rest, depth)?).is_some()
        } else {
            return None;
        };
        if twice || name.is_empty() {
            return None;
        }
    }
}

fn value(rest: &mut &str, depth: usize) -> Option<Value> {
    skip(rest);
    if take(rest, '[') {
        let mut list = Vec::new();
        while !take(rest, ']') {
            list.push(value(rest, depth.checked_sub(1)?)?);
            take(rest, ',');
        }
        return Some(Value::List(list));
    }
    if let Some(after) = rest.strip_prefix('"') {
        let (mut text, mut signs) = (String::new(), after.char_indices());
        loop {
            match signs.next()? {
                (_, '\\') => text.push(signs.next()?.1),
                (end, '"') => {
                    *rest = after.get(end + 1..)?;
                    return Some(Value::Text(text));
                }
                (_, sign) => text.push(sign),
            }
        }
    }
    let (number, after) = rest.split_at(rest.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(rest.len()));
    let number = number.parse().ok()?;
    *rest = after;
    Some(Value::Number(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_values_lists_and_comments_are_read() {
        let all = parse("# by hand\ncontents = \"a \\\"b\\\" }\"\nvg {\n seqno = 3 # third\n status = [\"READ\", \"WRITE\"]\nflags=[]\n pv { \nstripes = [\n\"pv0\", 0\n]\n}\n}\n").unwrap();
        assert_eq!(all.text("contents"), Some("a \"b\" }"));
        let group = &all.sections["vg"];
        assert_eq!(group.number("seqno"), Some(3));
        assert_eq!(group.texts("status").collect::<Vec<_>>(), ["READ", "WRITE"]);
        let stripes = vec![Value::Text("pv0".into()), Value::Number(0)];
        assert_eq!(group.sections["pv"].values["stripes"], Value::List(stripes));
    }

    #[test]
    fn what_is_cut_or_doubled_or_too_deep_is_nothing() {
        for text in ["vg {", "vg { a = ", "a = \"b", "a = [1, 2", "a = -1", "a = 1 a = 2", "}", "vg", "a = b"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"a {".repeat(100_000)), None);
        assert_eq!(parse(&format!("a = {}", "[".repeat(100_000))), None);
    }
}
