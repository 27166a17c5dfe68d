//! Access policies as the rules of a pod's port.

use heddle_api::{resources, v1};

use super::{AccessTarget, Mesh};
use crate::object::{Kind, Name};

impl Mesh {
    /// The rules of a Service's and its namespace's policies, in the order of names.
    pub(super) fn access_rules(&self, services: &[&Name], namespace: &str) -> Vec<v1::AccessRule> {
        let services = services.iter().map(|service| AccessTarget::Service((*service).clone()));
        let targets = services.chain([AccessTarget::Namespace(namespace.to_owned())]);
        let mut names: Vec<&Name> =
            targets.filter_map(|target| self.access_of.get(&target)).flatten().collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().filter_map(|name| Some(self.rule(name, self.access.get(name)?))).collect()
    }

    fn rule(&self, name: &Name, policy: &resources::AccessPolicy) -> v1::AccessRule {
        // What the compiler cannot vouch for, the sidecar is to deny: an unspecified action does.
        let usable = !self.unusable.contains_key(&super::apply::reference(Kind::AccessPolicy, name));
        let action = match policy.spec.action {
            _ if !usable => v1::AccessAction::Unspecified,
            resources::AccessAction::Allow => v1::AccessAction::Allow,
            resources::AccessAction::Deny => v1::AccessAction::Deny,
        };
        let clauses = if usable { policy.spec.rules.iter().map(clause).collect() } else { Vec::new() };
        v1::AccessRule { name: name.to_string(), action: action.into(), clauses }
    }
}

fn clause(rule: &resources::AccessRule) -> v1::AccessClause {
    v1::AccessClause {
        from: rule
            .from
            .iter()
            .map(|source| v1::AccessSource {
                service_accounts: source.service_accounts.iter().map(|sa| sa.as_str().to_owned()).collect(),
                namespaces: source.namespaces.clone(),
                cidrs: source.cidrs.iter().map(|cidr| cidr.as_str().to_owned()).collect(),
                anyone: source.anyone,
            })
            .collect(),
        to: rule
            .to
            .iter()
            .map(|operation| v1::AccessOperation {
                methods: operation.methods.clone(),
                paths: operation.paths.iter().map(|path| path.as_str().to_owned()).collect(),
            })
            .collect(),
    }
}
