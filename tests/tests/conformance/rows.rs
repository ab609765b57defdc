//! The behaviours of kube-proxy's nftables mode, in the order of the table in which they were written down.

/// Declares the rows: what each is called, and, for one that no packet of ours can show, why it has no case.
macro_rules! rows {
    ($($row:ident = $name:literal $(, elsewhere $why:literal)?;)*) => {
        /// One behaviour.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Row {
            $($row,)*
        }

        impl Row {
            /// Every row, in order.
            pub const ALL: &[Self] = &[$(Self::$row),*];

            /// The behaviour in a few words.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$row => $name,)*
                }
            }

            /// Why the row has no case here; a row without such a reason must have one.
            pub const fn elsewhere(self) -> Option<&'static str> {
                match self {
                    $($(Self::$row => Some($why),)?)*
                    _ => None,
                }
            }
        }
    };
}

rows! {
    ClusterIp = "ClusterIP";
    Ports = "multi-port, named targetPort differing per endpoint";
    SamePort = "TCP/UDP/SCTP on same port";
    Hairpin = "hairpin (endpoint -> own service)";
    SourceKept = "preserve source IP for pod->ClusterIP";
    MasqueradeAll = "masqueradeAll";
    DetectLocal = "detect-local modes";
    NodePort = "NodePort";
    NodePortLocalhost = "NodePort on localhost";
    LoadBalancer = "LoadBalancer ingress IP, ipMode";
    ExternalIps = "externalIPs";
    SourceRanges = "loadBalancerSourceRanges";
    Affinity = "sessionAffinity ClientIP";
    ExternalCluster = "externalTrafficPolicy Cluster";
    ExternalLocal = "externalTrafficPolicy Local";
    InternalLocal = "internalTrafficPolicy Local";
    Terminating = "terminating endpoints fallback";
    NotReady = "publishNotReadyAddresses";
    Hints = "trafficDistribution / hints";
    NoEndpoints = "no endpoints at all";
    NoLocalEndpoints = "endpoints exist but none local + Local";
    UndefinedPort = "undefined port of a ClusterIP";
    Unallocated = "unallocated ClusterIP";
    ServiceCidr = "ServiceCIDR change";
    Hidden = "headless / ExternalName / service-proxy-name";
    TypeChanges = "service type changes";
    BadIps = "bad IPs (leading zeros etc.)";
    Duplicates = "duplicate endpoint IP:port in two slices";
    HealthCheckNodePort = "healthCheckNodePort server";
    Healthz = "/healthz :10256, /livez";
    ConntrackCleanUp = "conntrack clean-up";
    CtInvalid = "ct invalid drop", elsewhere "kube-proxy's nftables mode has none either: later kernels and tcp-be-liberal make it needless";
    ConntrackSysctls = "conntrack sysctls";
    Flowtable = "flowtable offload", elsewhere "kube-proxy has none either";
    HostPort = "hostPort";
    DualStack = "dual stack";
    NodeAddress = "node IP change";
    TopologyLabel = "topology label change";
    Restart = "survive restart";
    PartialSync = "partial sync";
    BoundedFrequency = "bounded frequency";
    ListAll = "ListAll on every sync";
    StaleChains = "stale chain deletion";
    OtherModes = "clean-up of other modes";
    SelfHeal = "self-heal if someone edits table";
    Requirements = "requirements check";
}
