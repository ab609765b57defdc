//! The resources that are simulated, and how paths name them.

/// One kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resource {
    ConfigMaps,
    DaemonSets,
    EndpointSlices,
    Nodes,
    Pods,
    ServiceCidrs,
    Services,
}

impl Resource {
    const ALL: [Self; 7] = [
        Self::ConfigMaps,
        Self::DaemonSets,
        Self::EndpointSlices,
        Self::Nodes,
        Self::Pods,
        Self::ServiceCidrs,
        Self::Services,
    ];

    /// Its kind, its plural name and its group (`""` for the core group); every version is v1.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::ConfigMaps => ("ConfigMap", "configmaps", ""),
            Self::DaemonSets => ("DaemonSet", "daemonsets", "apps"),
            Self::EndpointSlices => ("EndpointSlice", "endpointslices", "discovery.k8s.io"),
            Self::Nodes => ("Node", "nodes", ""),
            Self::Pods => ("Pod", "pods", ""),
            Self::ServiceCidrs => ("ServiceCIDR", "servicecidrs", "networking.k8s.io"),
            Self::Services => ("Service", "services", ""),
        }
    }

    pub(super) fn kind(self) -> &'static str {
        self.names().0
    }

    pub(super) fn plural(self) -> &'static str {
        self.names().1
    }

    pub(super) fn group(self) -> &'static str {
        self.names().2
    }

    /// What stands in `apiVersion`.
    pub(super) fn api_version(self) -> String {
        match self.group() {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        }
    }

    pub(super) fn is_namespaced(self) -> bool {
        !matches!(self, Self::Nodes | Self::ServiceCidrs)
    }

    /// The fields that a fieldSelector may name besides `metadata.name` and `metadata.namespace`.
    pub(super) fn selectable_fields(self) -> &'static [&'static str] {
        match self {
            Self::Nodes => &["spec.unschedulable"],
            Self::Pods => &["spec.nodeName", "status.phase"],
            Self::Services => &["spec.clusterIP", "spec.type"],
            Self::ConfigMaps | Self::DaemonSets | Self::EndpointSlices | Self::ServiceCidrs => &[],
        }
    }

    pub(super) fn of_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.plural() == plural)
    }

    /// The resource of this plural name; a test that names another one is wrong.
    pub(super) fn of_plural_known(plural: &str) -> Self {
        Self::of_plural(plural).unwrap_or_else(|| panic!("the resource {plural} is not simulated"))
    }

    /// The resource of this kind; a test that names another one is wrong.
    pub(super) fn of_kind(kind: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|resource| resource.kind() == kind)
            .unwrap_or_else(|| panic!("the kind {kind} is not simulated"))
    }
}

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) resource: Resource,
    /// `None` for all namespaces, and for a resource without namespaces.
    pub(super) namespace: Option<String>,
    /// `None` for the collection.
    pub(super) name: Option<String>,
}

impl Target {
    /// The resource as messages name it: `services`, `endpointslices.discovery.k8s.io`.
    pub(super) fn qualified(&self) -> String {
        match (self.resource.plural(), self.resource.group()) {
            (plural, "") => plural.to_owned(),
            (plural, group) => format!("{plural}.{group}"),
        }
    }

    /// Reads `/api/v1/...` and `/apis/GROUP/v1/...`; `None` is what a real server calls an unknown resource.
    pub(super) fn of_path(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, "v1", rest @ ..] => (*group, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            _ => (None, rest),
        };
        let (plural, name) = match rest {
            [plural] => (plural, None),
            [plural, name] => (plural, Some((*name).to_owned())),
            _ => return None,
        };
        let resource = Resource::of_plural(plural).filter(|resource| resource.group() == group)?;
        let named_without_namespace = resource.is_namespaced() && name.is_some() && namespace.is_none();
        let needless_namespace = !resource.is_namespaced() && namespace.is_some();
        (!named_without_namespace && !needless_namespace).then_some(Self {
            resource,
            namespace,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_a_real_server_does() {
        let of = |path: &str| Target::of_path(path).map(|t| (t.resource, t.namespace, t.name));
        assert_eq!(of("/api/v1/services"), Some((Resource::Services, None, None)));
        let shop = Some("shop".to_owned());
        let slices = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
        assert_eq!(of(slices), Some((Resource::EndpointSlices, shop.clone(), None)));
        let web = Some("web".to_owned());
        assert_eq!(
            of("/api/v1/namespaces/shop/services/web"),
            Some((Resource::Services, shop, web))
        );
        assert_eq!(of("/api/v1/services/web"), None);
        assert_eq!(of("/api/v1/namespaces/shop/nodes"), None);
        assert_eq!(of("/apis/discovery.k8s.io/v1/services"), None);
    }
}
