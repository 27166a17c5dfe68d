//! YAML as kubectl has it. kubectl reads YAML 1.1, in which `yes` is a boolean and `0400` is 256; serde_norway reads and
//! writes YAML 1.2, in which both are texts. What is read here means what it means to kubectl, and what is written here
//! is read alike by both.
//!
//! Only scalars differ, and those without quotes alone, so that is what is changed: in the text, before serde_norway
//! reads it and after it wrote it. Lines stay where they are.

use std::{borrow::Cow, fmt, sync::LazyLock};

use regex::Regex;
use serde::{
    Serialize,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_norway::{Deserializer, Error};

/// What a scalar without quotes is to kubectl (`resolve` of sigs.k8s.io/yaml/goyaml.v2), where it is no text.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scalar {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
}

/// A text of the same lines that says in YAML 1.2 what `text` says to kubectl. Of a text that is no YAML nothing is
/// promised but that it still is none.
#[must_use]
pub fn read(text: &str) -> Cow<'_, str> {
    // Most texts have nothing that could differ; that much is seen without parsing.
    let word = |c: char| !(c.is_ascii_alphanumeric() || "_+-.".contains(c));
    if !text.split(word).any(|word| scalar(word).is_some_and(|scalar| scalar.to_string() != word)) {
        return Cow::Borrowed(text);
    }
    let (plain, _unreadable) = plain_texts(text);
    replace(text, &plain, |plain| {
        let scalar = scalar(plain.of(text))?;
        if !plain.is_key {
            return Some(scalar.to_string());
        }
        let key = scalar.key()?;
        (key != plain.of(text)).then(|| format!("'{key}'"))
    })
}

/// As YAML in which every text has quotes that would be none to a reader of YAML 1.1.
///
/// # Errors
/// None in service: for what is no YAML.
pub fn write(value: &impl Serialize) -> Result<String, Error> {
    let text = serde_norway::to_string(value)?;
    let (plain, unreadable) = plain_texts(&text);
    match unreadable {
        Some(error) => Err(error),
        None => Ok(replace(&text, &plain, |plain| {
            let content = plain.of(&text);
            // A merge key came as one, and goes as one.
            let differs = is_no_text(content) && !(plain.is_key && content == "<<");
            differs.then(|| format!("'{content}'"))
        })
        .into_owned()),
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(is) => is.fmt(f),
            Self::Integer(number) => number.fmt(f),
            // With a point or an exponent, so that it stays a float.
            Self::Float(number) => write!(f, "{number:?}"),
        }
    }
}

impl Scalar {
    /// As a key: JSON has none but texts.
    fn key(self) -> Option<String> {
        match self {
            Self::Bool(_) | Self::Integer(_) => Some(self.to_string()),
            // Beyond these there are exponents, for which nobody has a use.
            Self::Float(number) if number == 0.0 || (1e-4..1e6).contains(&number.abs()) => {
                Some((number as f32).to_string())
            }
            Self::Null | Self::Float(_) => None,
        }
    }
}

fn scalar(text: &str) -> Option<Scalar> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Scalar::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Some(Scalar::Bool(true));
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Some(Scalar::Bool(false));
        }
        _ => {}
    }
    static FLOAT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$").expect("it is one")
    });
    if !text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
        return None;
    }
    // Behind a point they stand between digits, elsewhere anywhere.
    let stray = text.ends_with('_') || ["._", "__", "_e", "_E"].iter().any(|pair| text.contains(pair));
    if text.starts_with('.') && stray {
        return None;
    }
    let digits = text.replace('_', "");
    integer(&digits).or_else(|| {
        let number = FLOAT.is_match(&digits).then(|| digits.parse::<f64>().ok())??;
        number.is_finite().then_some(Scalar::Float(number))
    })
}

fn integer(text: &str) -> Option<Scalar> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
        [b'0', b'o' | b'O', ..] => (&digits[2..], 8),
        [b'0', b'b' | b'B', ..] => (&digits[2..], 2),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    let number = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let number = if negative { -number } else { number };
    (number >= i128::from(i64::MIN)).then_some(Scalar::Integer(number))
}

/// Whether some reader of YAML 1.1 takes this for something else than a text: beside kubectl's there are those that
/// know times, numbers to the base of 60, and `=`.
fn is_no_text(plain: &str) -> bool {
    static OTHERS: LazyLock<Regex> = LazyLock::new(|| {
        let sixties = r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?";
        let times = r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?";
        let words = r"=|<<|(?i:true|false|yes|no|on|off|null|[-+]?\.inf|\.nan)";
        let numbers = r"[-+]?(0[xX][0-9a-fA-F_]*|0[bB][01_]*|[0-9_]*\.?[0-9_]*([eE][-+]?[0-9_]+)?)";
        Regex::new(&format!("^({sixties}|{times}|{words}|{numbers})$")).expect("it is one")
    });
    scalar(plain).is_some() || (OTHERS.is_match(plain) && plain.len() > 1) || plain == "="
}

/// A text without quotes, where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Plain {
    at: usize,
    length: usize,
    is_key: bool,
}

impl Plain {
    fn of(self, text: &str) -> &str {
        &text[self.at..self.at + self.length]
    }
}

fn replace<'a>(text: &'a str, all: &[Plain], by: impl Fn(&Plain) -> Option<String>) -> Cow<'a, str> {
    let (mut out, mut done) = (String::new(), 0);
    for plain in all {
        if let Some(other) = by(plain) {
            out.push_str(&text[done..plain.at]);
            out.push_str(&other);
            done = plain.at + plain.length;
        }
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[done..]);
    Cow::Owned(out)
}

/// All keys without quotes, and all values without quotes that are texts in YAML 1.2, up to where it cannot be read.
fn plain_texts(text: &str) -> (Vec<Plain>, Option<Error>) {
    let mut all = Vec::new();
    let mut problem = None;
    for document in Deserializer::from_str(text) {
        let walk = Walk { text, all: &mut all, is_key: false };
        if let Err(error) = walk.deserialize(document) {
            problem = Some(error);
            break;
        }
    }
    all.sort_unstable();
    // What an alias repeats stands there once.
    all.dedup_by_key(|plain| plain.at);
    (all, problem)
}

/// Goes through a document and notes what stands in it without quotes.
struct Walk<'a> {
    text: &'a str,
    all: &'a mut Vec<Plain>,
    is_key: bool,
}

impl Walk<'_> {
    fn inner(&mut self, is_key: bool) -> Walk<'_> {
        Walk { text: self.text, all: self.all, is_key }
    }

    /// serde_norway lends those scalars from its input that stand in it as they are read. So where it lends from is where
    /// the scalar stands, and what comes before that says whether it has quotes or a tag.
    fn note(&mut self, scalar: &str) {
        let at = (scalar.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        let Some(before) = self.text.get(..at) else { return };
        let has_tag = before.split_whitespace().rev().find(|word| !word.starts_with('&'));
        let has_tag = has_tag.is_some_and(|word| word.starts_with('!'));
        if !before.ends_with(['"', '\'']) && !has_tag {
            self.all.push(Plain { at, length: scalar.len(), is_key: self.is_key });
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.is_key { deserializer.deserialize_str(self) } else { deserializer.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what JSON has")
    }

    fn visit_borrowed_str<E>(mut self, scalar: &'de str) -> Result<(), E> {
        self.note(scalar);
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.inner(false))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        while entries.next_key_seed(self.inner(true))?.is_some() {
            entries.next_value_seed(self.inner(false))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn value(text: &str) -> Value {
        serde_norway::from_str(&read(text)).unwrap()
    }

    /// As `kubectl label --local -f … -o json` (1.32) shows it.
    #[test]
    fn what_is_read_means_what_it_means_to_kubectl() {
        for (text, expected) in [
            ("y", json!(true)),
            ("yes", json!(true)),
            ("On", json!(true)),
            ("n", json!(false)),
            ("NO", json!(false)),
            ("off", json!(false)),
            ("oN", json!("oN")),
            ("0400", json!(256)),
            ("-0400", json!(-256)),
            ("08", json!(8.0)),
            ("0o17", json!(15)),
            ("0B11", json!(3)),
            ("0X1F", json!(31)),
            ("0x_1", json!(1)),
            ("0x", json!("0x")),
            ("1_000", json!(1000)),
            ("1_0.5", json!(10.5)),
            (".5_5", json!(0.55)),
            (".5_", json!(".5_")),
            ("_1", json!("_1")),
            ("1:30", json!("1:30")),
            ("2001-01-01", json!("2001-01-01")),
            ("1e400", json!("1e400")),
            ("=", json!("=")),
            ("'yes'", json!("yes")),
            ("\"0400\"", json!("0400")),
            ("!!str yes", json!("yes")),
            ("!!str &a yes", json!("yes")),
            ("|-\n   0400", json!("0400")),
            ("[yes, 'no', {on: off}]", json!([true, "no", {"true": false}])),
        ] {
            assert_eq!(value(&format!("v: {text}\n"))["v"], expected, "{text}");
        }
        let read = value("{a: &a yes, b: *a, c: [*a]}");
        assert_eq!(read, json!({"a": true, "b": true, "c": [true]}));
        let keys = value("{on: 1, 0400: 2, 1_0: 3, 1.0: 4, .5: 5, 'yes': 6, True: 7, 0x10: 8, a.b: 9}");
        let keys: Vec<&String> = keys.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["0.5", "1", "10", "16", "256", "a.b", "true", "yes"]);
    }

    #[test]
    fn documents_and_lines_stay_where_they_are() {
        let text = "# ja\na: yes\n---\n'b': 0400 # 0400\nc:\n- \"no\"\n";
        assert_eq!(read(text), "# ja\na: true\n---\n'b': 256 # 0400\nc:\n- \"no\"\n");
        let broken = "a: yes\n---\nb: [\n";
        assert!(serde_norway::from_str::<Value>(&read(broken)).is_err());
        assert!(matches!(read("a: {b: [c, 1, true, 0.5]}\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn texts_that_yaml_1_1_takes_for_something_else_are_written_with_quotes() {
        let written = json!({
            "on": ["yes", "NO", "n", "1_000", "0400", "1:30", "2001-01-01", "=", "<<", "0b_", ".1_", "on", "oFf"],
            "y": true, "0x_1": 256, "10.0.0.7": "100m", "<<": {"a": "a b"}, "1.5": "-", "web": "1.2.3", "c": "+", "_": "_1",
        });
        let text = write(&written).unwrap();
        for quoted in [
            "'on':",
            "'0x_1': 256",
            "- 'yes'",
            "- 'NO'",
            "- 'n'",
            "- '1_000'",
            "- '0400'",
            "- '1:30'",
            "- '2001-01-01'",
            "- '='",
            "- '<<'",
            "- '0b_'",
            "- '.1_'",
            "- 'on'",
            "- 'oFf'",
            "'y': true",
        ] {
            assert!(text.contains(quoted), "{quoted} in\n{text}");
        }
        for plain in ["10.0.0.7: 100m\n", "\n<<:\n  a: a b\n", "web: 1.2.3\n"] {
            assert!(text.contains(plain), "{plain} in\n{text}");
        }
        assert_eq!(value(&text), written);
        assert_eq!(serde_norway::from_str::<Value>(&text).unwrap(), written, "and in YAML 1.2");
    }
}
