//! What a status says, made from what the compiler says. Pure.
//!
//! Routes as the Gateway API has it (RouteParentStatus, GEP-1364), policies as its PolicyStatus (GEP-713).

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    diagnostics::{Diagnostic, Reason, Severity},
    object::{Kind, ObjectRef},
    source::kubernetes::ledger::Seen,
};

/// Who writes (contract: `controllerName`).
pub const CONTROLLER: &str = "heddle.dev/control-plane";
/// Parents and ancestors at most (Gateway API).
const PARENTS: usize = 32;
const ANCESTORS: usize = 16;
/// The longest message of a condition.
const MESSAGE: usize = 32768;

/// A condition before it is dated.
struct Condition {
    kind: &'static str,
    /// `None`: it holds.
    problem: Option<(&'static str, String)>,
    /// The reason when it holds.
    good: &'static str,
    /// What is said then.
    says: &'static str,
}

/// The status that an object is to have, when it has another.
pub fn status(object: &ObjectRef, seen: &Seen, problems: &[&Diagnostic], now: Timestamp) -> Option<Value> {
    let errors: Vec<_> = problems.iter().copied().filter(|p| p.severity == Severity::Error).collect();
    let route = matches!(object.kind, Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute);
    let list = if route { "parents" } else { "ancestors" };
    let old = seen.status.get(list).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (ours, theirs): (Vec<_>, Vec<_>) =
        old.iter().partition(|entry| entry["controllerName"].as_str() == Some(CONTROLLER));
    let (key, wanted, limit) = if route {
        ("parentRef", parents(seen, &errors), PARENTS)
    } else {
        ("ancestorRef", ancestors(object, seen, &errors), ANCESTORS)
    };
    let dated = |(reference, conditions): (Value, Vec<Condition>)| {
        let former = ours.iter().find(|entry| entry[key] == reference);
        let former =
            former.and_then(|entry| entry["conditions"].as_array()).map(Vec::as_slice).unwrap_or_default();
        let conditions: Vec<_> =
            conditions.into_iter().map(|condition| date(condition, former, seen.generation, now)).collect();
        json!({key: reference, "controllerName": CONTROLLER, "conditions": conditions})
    };
    let mut entries: Vec<Value> = theirs.iter().map(|entry| (*entry).clone()).collect();
    // Others' entries are not ours to drop.
    let room = limit.saturating_sub(entries.len());
    entries.extend(wanted.into_iter().take(room).map(dated));
    if entries.is_empty() && old.is_empty() {
        return None;
    }
    let sorted = |entries: &[Value]| {
        let mut texts: Vec<_> = entries.iter().map(Value::to_string).collect();
        texts.sort();
        texts
    };
    (sorted(&entries) != sorted(old)).then(|| json!({ list: entries }))
}

/// A route's parents that are Services; others (a Gateway) are somebody else's business.
fn parents(seen: &Seen, errors: &[&Diagnostic]) -> Vec<(Value, Vec<Condition>)> {
    let is_service =
        |parent: &Value| parent["group"].as_str() == Some("") && parent["kind"].as_str() == Some("Service");
    let conditions = |index: usize| {
        let own = format!("spec.parentRefs[{index}]");
        let of_parent = |field: &str| {
            field.strip_prefix(&own).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        // What is of no reference and of no other parent is of the whole route.
        let whole = |field: &str| !field.starts_with("spec.parentRefs[");
        let here = errors.iter().copied().filter(|error| {
            let field = error.field.as_deref().unwrap_or_default();
            of_parent(field) || whole(field)
        });
        let (references, others): (Vec<&Diagnostic>, Vec<_>) =
            here.partition(|error| error.reason.is_of_references());
        let (wrong, references) = (others.first(), references.first());
        let accepted = wrong.map(|error| {
            let reason = match error.reason {
                // The route itself says what cannot be used.
                Reason::Invalid => Reason::UnsupportedValue,
                reason => reason,
            };
            (reason.as_str(), sentence(error))
        });
        let resolved = references.map(|error| (error.reason.as_str(), sentence(error)));
        vec![
            Condition {
                kind: "Accepted",
                problem: accepted,
                good: "Accepted",
                says: "The route is in effect.",
            },
            Condition {
                kind: "ResolvedRefs",
                problem: resolved,
                good: "ResolvedRefs",
                says: "All references lead somewhere.",
            },
        ]
    };
    seen.refs
        .iter()
        .enumerate()
        .filter(|(_, parent)| is_service(parent))
        .map(|(index, parent)| (parent.clone(), conditions(index)))
        .collect()
}

/// A policy's targets; of a MeshPolicy its namespace.
fn ancestors(object: &ObjectRef, seen: &Seen, errors: &[&Diagnostic]) -> Vec<(Value, Vec<Condition>)> {
    let condition = |index: Option<usize>| {
        let own = index.map(|index| format!("spec.targetRefs[{index}]"));
        let wrong = errors.iter().find(|error| {
            let field = error.field.as_deref().unwrap_or_default();
            let of_one = field.starts_with("spec.targetRefs[");
            let of_this = own.as_ref().is_some_and(|own| field.starts_with(own));
            !of_one || of_this || error.reason == Reason::Invalid
        });
        let problem = wrong.map(|error| (error.reason.as_str(), sentence(error)));
        vec![Condition { kind: "Accepted", problem, good: "Accepted", says: "The policy is in effect." }]
    };
    let reference = |kind: &str, name: &str| {
        let mut fields = Map::new();
        fields.insert("group".to_owned(), "".into());
        fields.insert("kind".to_owned(), kind.into());
        fields.insert("name".to_owned(), name.into());
        if kind != "Namespace" {
            fields.insert("namespace".to_owned(), object.namespace.as_str().into());
        }
        Value::Object(fields)
    };
    if object.kind == Kind::MeshPolicy {
        return vec![(reference("Namespace", &object.namespace), condition(None))];
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    seen.refs
        .iter()
        .enumerate()
        .map(|(index, target)| {
            (reference(&text(&target["kind"]), &text(&target["name"])), condition(Some(index)))
        })
        .collect()
}

fn sentence(problem: &Diagnostic) -> String {
    let field = problem.field.as_ref().map_or(String::new(), |field| format!("{field}: "));
    let text = format!("{field}{}.", problem.message);
    text.chars().take(MESSAGE).collect()
}

/// The time of its last transition stays while the status (not the reason) stays.
fn date(condition: Condition, former: &[Value], generation: i64, now: Timestamp) -> Value {
    let status = if condition.problem.is_none() { "True" } else { "False" };
    let (reason, message) = condition.problem.unwrap_or((condition.good, condition.says.to_owned()));
    let old = former.iter().find(|old| old["type"].as_str() == Some(condition.kind));
    let since = old
        .filter(|old| old["status"].as_str() == Some(status))
        .and_then(|old| old["lastTransitionTime"].as_str())
        .map_or_else(|| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), str::to_owned);
    json!({
        "type": condition.kind, "status": status, "reason": reason, "message": message,
        "observedGeneration": generation, "lastTransitionTime": since,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostics::FieldError;

    fn object(kind: Kind) -> ObjectRef {
        ObjectRef { kind, namespace: "shop".to_owned(), name: "x".to_owned() }
    }

    #[allow(clippy::needless_pass_by_value, reason = "literals read better at the calls")]
    fn seen(refs: Value, status: Value) -> Seen {
        let refs = refs.as_array().unwrap().clone();
        Seen { uid: "u".to_owned(), version: "1".to_owned(), generation: 4, refs, status }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn service() -> Value {
        json!({"group": "", "kind": "Service", "name": "reviews", "port": 9080})
    }

    fn short(status: &Value) -> Vec<String> {
        let lists = ["parents", "ancestors"];
        let entries = lists.iter().find_map(|list| status[list].as_array()).unwrap();
        let conditions = entries.iter().filter_map(|entry| entry["conditions"].as_array()).flatten();
        conditions
            .map(|c| [&c["type"], &c["status"], &c["reason"]].map(|text| text.as_str().unwrap()).join(" "))
            .collect()
    }

    #[test]
    fn a_route_that_holds_says_so_once_and_is_not_written_again() {
        let route = object(Kind::HttpRoute);
        let first = status(&route, &seen(json!([service()]), Value::Null), &[], at(0)).unwrap();
        assert_eq!(short(&first), ["Accepted True Accepted", "ResolvedRefs True ResolvedRefs"]);
        let parent = &first["parents"][0];
        assert_eq!(parent["parentRef"], service());
        assert_eq!(parent["controllerName"], CONTROLLER);
        assert_eq!(parent["conditions"][0]["observedGeneration"], 4);
        assert_eq!(parent["conditions"][0]["lastTransitionTime"], "2027-01-15T08:00:00Z");
        assert_eq!(status(&route, &seen(json!([service()]), first), &[], at(60)), None);
    }

    #[test]
    fn another_controllers_parents_stay_and_gateways_are_not_ours() {
        let gateway = json!({"name": "edge"});
        let theirs = json!({"parentRef": gateway, "controllerName": "example.com/gateway", "conditions": []});
        let seen = seen(json!([gateway, service()]), json!({"parents": [theirs]}));
        let written = status(&object(Kind::HttpRoute), &seen, &[], at(0)).unwrap();
        assert_eq!(written["parents"].as_array().unwrap().len(), 2);
        assert_eq!(written["parents"][0], theirs);
    }

    #[test]
    fn each_problem_has_the_reason_that_the_gateway_api_gives_it() {
        let route = object(Kind::HttpRoute);
        let says = |field: &str, reason: Reason| {
            let problem = FieldError::error(field, "it is so").because(reason).of(&route, None);
            short(&status(&route, &seen(json!([service()]), Value::Null), &[&problem], at(0)).unwrap())
        };
        let resolved = "ResolvedRefs True ResolvedRefs";
        assert_eq!(
            says("spec.parentRefs[0].port", Reason::NoMatchingParent),
            ["Accepted False NoMatchingParent", resolved]
        );
        assert_eq!(
            says("spec.rules[0].filters", Reason::Invalid),
            ["Accepted False UnsupportedValue", resolved]
        );
        assert_eq!(
            says("spec.parentRefs[1].port", Reason::NoMatchingParent),
            ["Accepted True Accepted", resolved]
        );
        for reason in [Reason::BackendNotFound, Reason::RefNotPermitted, Reason::InvalidKind] {
            assert_eq!(
                says("spec.rules[0].backendRefs[0]", reason),
                ["Accepted True Accepted".to_owned(), format!("ResolvedRefs False {}", reason.as_str())]
            );
        }
    }

    #[test]
    fn a_reference_that_is_refused_at_one_parent_holds_at_the_others() {
        let route = object(Kind::HttpRoute);
        let refused = FieldError::error("spec.parentRefs[1]", "spec.rules[0].backendRefs[0]: it is so")
            .because(Reason::RefNotPermitted)
            .of(&route, None);
        let seen = seen(json!([service(), service()]), Value::Null);
        assert_eq!(
            short(&status(&route, &seen, &[&refused], at(0)).unwrap()),
            [
                "Accepted True Accepted",
                "ResolvedRefs True ResolvedRefs",
                "Accepted True Accepted",
                "ResolvedRefs False RefNotPermitted"
            ]
        );
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let route = object(Kind::HttpRoute);
        let first = status(&route, &seen(json!([service()]), Value::Null), &[], at(0)).unwrap();
        let problem = FieldError::error("spec.rules[0].backendRefs[0]", "gone")
            .because(Reason::BackendNotFound)
            .of(&route, None);
        let then = status(&route, &seen(json!([service()]), first.clone()), &[&problem], at(60)).unwrap();
        let time = |status: &Value, index: usize| {
            status["parents"][0]["conditions"][index]["lastTransitionTime"].clone()
        };
        assert_eq!(time(&then, 0), time(&first, 0));
        assert_ne!(time(&then, 1), time(&first, 1));
    }

    #[test]
    fn a_policy_says_of_each_target_what_became_of_it() {
        let policy = object(Kind::TrafficPolicy);
        let targets = json!([{"group": "", "kind": "Service", "name": "a"}, {"group": "", "kind": "Service", "name": "b"}]);
        let lost =
            FieldError::error("spec.targetRefs[1]", "taken").because(Reason::Conflicted).of(&policy, None);
        let written = status(&policy, &seen(targets, Value::Null), &[&lost], at(0)).unwrap();
        assert_eq!(short(&written), ["Accepted True Accepted", "Accepted False Conflicted"]);
        let expected = json!({"group": "", "kind": "Service", "name": "b", "namespace": "shop"});
        assert_eq!(written["ancestors"][1]["ancestorRef"], expected);
        let mesh = object(Kind::MeshPolicy);
        let written = status(&mesh, &seen(json!([]), Value::Null), &[], at(0)).unwrap();
        assert_eq!(written["ancestors"][0]["ancestorRef"]["kind"], "Namespace");
    }

    #[test]
    fn parents_that_a_route_lost_leave_its_status() {
        let route = object(Kind::HttpRoute);
        let first = status(&route, &seen(json!([service()]), Value::Null), &[], at(0)).unwrap();
        let gateway = json!([{"name": "edge"}]);
        assert_eq!(status(&route, &seen(gateway, first), &[], at(1)), Some(json!({"parents": []})));
    }
}
