//! Packets through kube-proxy's nftables tables.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use nftfleet_tests::kube_proxy::{Family, install_nftables};
use nftfleet_tests::lab::{Lab, LabSpec};
use nftfleet_tests::manifests::{self, AddressType, Readiness, endpoint_slice, service};
use nftfleet_tests::traffic::{NewConnections, tcp_identity, udp_identity};
use nftfleet_tests::wait;

const LIMIT: Duration = Duration::from_secs(3);

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address with a port")
}

#[test]
fn kube_proxys_nftables_tables_answer_and_follow_changes() {
    let lab = Lab::new(&LabSpec::dual_stack(1, 3));
    let _servers = lab.serve_backends(&[8080, 9090, 9053], &[9053]);
    let node = lab.node(1);
    let mut objects = manifests::all();
    let node_port = service("shop", "shown")
        .cluster_ips(["10.96.20.1"])
        .port("http", "TCP", 80, 8080)
        .node_port(30080);
    objects.push(node_port.object());
    let slice = |number: u8| {
        endpoint_slice("shop", "shown", "a", AddressType::IPv4)
            .port("http", "TCP", 8080)
            .endpoint(&format!("10.128.200.{number}"), "", Readiness::READY)
            .object()
    };
    objects.push(slice(1));
    install_nftables(&node.netns, &objects, &Family::BOTH);
    let shown = [at("10.96.20.1:80"), SocketAddr::new(node.address4.into(), 30080)];
    for from in [&node.client, &node.pod, &node.netns] {
        for target in [
            "10.96.0.10:53",
            "[fd00:10:96::a]:53",
            "10.96.10.1:80",
            "[fd00:10:96::a01]:80",
        ] {
            tcp_identity(from, at(target), LIMIT).unwrap_or_else(|error| panic!("{target}: {error}"));
        }
        udp_identity(from, at("10.96.0.10:53"), LIMIT).unwrap();
        udp_identity(from, at("[fd00:10:96::a]:53"), LIMIT).unwrap();
        for target in shown {
            assert_eq!(tcp_identity(from, target, LIMIT).unwrap(), "backend-1", "{target}");
        }
        // Neither a Service without endpoints nor a port that a Service does not have is left hanging.
        for target in ["10.96.10.9:80", "10.96.10.1:81"] {
            let error = tcp_identity(from, at(target), LIMIT).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{target}: {error}");
        }
    }

    let traffic = NewConnections::start(&node.client, shown.to_vec(), 500);
    for number in [2, 3, 1, 2].repeat(3) {
        objects.pop();
        objects.push(slice(number));
        install_nftables(&node.netns, &objects, &Family::BOTH);
        let made = traffic.counts().made;
        wait::until_blocking("connections", LIMIT, || {
            (traffic.counts().made > made + 20).then_some(())
        });
        for target in shown {
            assert_eq!(
                tcp_identity(&node.client, target, LIMIT).unwrap(),
                format!("backend-{number}")
            );
        }
    }
    traffic.stop().assert_no_loss();
}
