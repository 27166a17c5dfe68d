//! Which object a document that is no YAML would be, by the look of its lines: to name it to its owner, and to know
//! which policy fails closed.

use crate::object::{Kind, ObjectRef};

/// The object; `None` where kind or name do not show.
pub(super) fn object(text: &str) -> Option<ObjectRef> {
    let top = |key: &str| text.lines().find_map(|line| scalar(line, key));
    let kind_text = top("kind")?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == kind_text)?;
    let mut lines = text.lines().skip_while(|line| !line.starts_with("metadata:"));
    let head = lines.next()?.strip_prefix("metadata:")?;
    let below = lines.take_while(|line| line.trim().is_empty() || line.starts_with([' ', '\t']));
    let metadata: Vec<&str> = std::iter::once(head)
        .chain(below)
        .flat_map(|line| line.split([',', '{', '}']))
        .map(str::trim_start)
        .collect();
    let field = |key: &str| metadata.iter().find_map(|part| scalar(part, key));
    let name = field("name")?.to_owned();
    let namespace =
        if kind.is_namespaced() { field("namespace").unwrap_or("default").to_owned() } else { String::new() };
    Some(ObjectRef { kind, namespace, name })
}

/// The value of `key: value`, if it could be a name.
fn scalar<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let value = line.strip_prefix(key)?.strip_prefix(':')?;
    let value = value.split('#').next().unwrap_or_default().trim().trim_matches(['"', '\'']);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    (!value.is_empty() && value.bytes().all(plain)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_known_by_its_lines_in_either_style() {
        let found = |text: &str| object(text).map(|object| object.to_string());
        let block = "kind: Pod # a pod\nmetadata:\n\tname: \"a\"\n\n  namespace: shop\nspec:\n  name: z\n";
        assert_eq!(found(block).as_deref(), Some("Pod shop/a"));
        assert_eq!(
            found("metadata: {namespace: shop, name: a\nkind: Service\n").as_deref(),
            Some("Service shop/a")
        );
        assert_eq!(found("kind: MeshPolicy\nmetadata: {name: a}\n").as_deref(), Some("MeshPolicy default/a"));
        assert_eq!(found("kind: Namespace\nmetadata: {name: a}\n").as_deref(), Some("Namespace a"));
        for text in [
            "",
            "kind: [\n",
            "kind: Pod\n",
            "kind: List\nmetadata: {name: a}\n",
            "kind: Pod\nmetadata: {name: [}\n",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
    }
}
