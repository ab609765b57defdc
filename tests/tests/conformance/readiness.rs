//! Endpoints that come up, go down, or are there twice.

use nftfleet_domain::service::Vip;
use nftfleet_tests::manifests::{AddressType, Readiness, Readiness as R, ServiceBuilder, endpoint_slice};
use serde_json::{Value, json};

use crate::ask::{answered_by, asks, refused, unanswered, vips};
use crate::case::cases;
use crate::objects::{Member, NAMESPACE, PORT, WEB, exposed, web};
use crate::rig::Rig;

cases! {
    Terminating: who_is_ready_goes_before_who_is_ending, ["PT:2948", "topology TestCategorizeEndpoints", "S:3073"];
    Terminating: who_still_serves_serves_when_nobody_is_ready, ["PT:2948", "S:3073", "S:3149"];
    Terminating: policy_local_looks_at_this_nodes_endpoints_first, ["PT:2615", "S:2920", "S:2994"];
    Terminating: policy_local_falls_back_by_itself, ["PT:2615", "S:2994"];
    Terminating: a_service_ends_step_by_step_and_comes_again, ["PT:2615", "PT:2948"];
    NotReady: who_is_not_ready_gets_nothing, ["S:1792", "S:2068"];
    NotReady: published_unready_endpoints_are_ready_in_their_slices, ["S:1792", "S:1948"];
    NotReady: conditions_that_are_not_said_mean_ready, ["endpointslicecache TestEndpointsMapFromESC"];
    Duplicates: the_one_that_is_not_ending_wins, ["endpointslicecache TestEndpointInfoByServicePort"];
    Duplicates: an_endpoint_in_two_slices_counts_once, ["endpointslicecache TestEndpointInfoByServicePort"];
    Duplicates: it_stays_until_its_last_slice_goes, ["endpointslicecache TestEsDataChanged"];
}

/// Makes these the endpoints of shop/web, each with its state.
fn endpoints_are(rig: &mut Rig, endpoints: &[(&str, Readiness)]) {
    let members: Vec<_> = endpoints
        .iter()
        .map(|(name, readiness)| rig.member(name).is(*readiness))
        .collect();
    rig.endpoints("web", &members);
}

fn rig(service: ServiceBuilder) -> Rig {
    let mut rig = Rig::new();
    rig.apply(service.object());
    rig.commit();
    rig
}

/// The `ClusterIP`, and every way in from outside.
fn all_ways(rig: &Rig) -> Vec<Vip> {
    let mut targets = vips(WEB);
    targets.extend(rig.outside());
    targets
}

fn who_is_ready_goes_before_who_is_ending() {
    let mut rig = rig(exposed());
    endpoints_are(
        &mut rig,
        &[
            ("backend-1", R::READY),
            ("backend-2", R::DRAINING),
            ("backend-3", R::GONE),
            ("pod-1", R::UNREADY),
        ],
    );
    answered_by(&asks(rig.everybody(), &all_ways(&rig)), ["backend-1"]);
}

fn who_still_serves_serves_when_nobody_is_ready() {
    let mut rig = rig(exposed());
    endpoints_are(
        &mut rig,
        &[
            ("backend-1", R::DRAINING),
            ("backend-2", R::DRAINING),
            ("backend-3", R::GONE),
            ("pod-1", R::UNREADY),
        ],
    );
    answered_by(&asks(rig.everybody(), &all_ways(&rig)), ["backend-1", "backend-2"]);
    // Nobody of them serves any more.
    endpoints_are(
        &mut rig,
        &[
            ("backend-1", R::GONE),
            ("backend-2", R::UNREADY),
            ("backend-3", R::GONE),
        ],
    );
    refused(&asks(rig.everybody(), &all_ways(&rig)));
}

fn policy_local_looks_at_this_nodes_endpoints_first() {
    let mut rig = rig(exposed().external_policy("Local").internal_policy("Local"));
    let client = rig.node().client.clone();
    // Ready elsewhere, ending here: from outside, here counts.
    endpoints_are(&mut rig, &[("backend-1", R::READY), ("pod-1", R::DRAINING)]);
    answered_by(&asks([&client], &rig.outside()), ["pod-1"]);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["pod-1"]);
    // The cluster's own clients go to who is ready.
    answered_by(
        &asks([&rig.node().pod, &rig.node().netns], &rig.outside()),
        ["backend-1"],
    );
    // Here nobody serves any more.
    endpoints_are(&mut rig, &[("backend-1", R::READY), ("pod-1", R::GONE)]);
    unanswered(&asks([&client], &rig.outside()));
    unanswered(&asks(rig.everybody(), &vips(WEB)));
}

fn policy_local_falls_back_by_itself() {
    let mut rig = rig(exposed().external_policy("Local"));
    let second = rig.lab.add_pod(1);
    rig.serve(&second.netns, "pod-1b", PORT);
    let addresses = [second.address4.into(), second.address6.into()];
    let other = Member::new(&addresses, "node-1");
    let with = |rig: &mut Rig, first: Readiness, second: Readiness| {
        let members = [
            rig.member("pod-1").is(first),
            other.clone().is(second),
            rig.member("backend-1"),
        ];
        rig.endpoints("web", &members);
    };
    let client = rig.node().client.clone();
    for (first, second, expected) in [
        (R::READY, R::READY, vec!["pod-1", "pod-1b"]),
        (R::READY, R::DRAINING, vec!["pod-1"]),
        (R::DRAINING, R::READY, vec!["pod-1b"]),
        (R::DRAINING, R::DRAINING, vec!["pod-1", "pod-1b"]),
        (R::GONE, R::DRAINING, vec!["pod-1b"]),
        (R::UNREADY, R::DRAINING, vec!["pod-1b"]),
        (R::READY, R::UNREADY, vec!["pod-1"]),
    ] {
        with(&mut rig, first, second);
        answered_by(&asks([&client], &rig.outside()), expected);
    }
    with(&mut rig, R::GONE, R::UNREADY);
    unanswered(&asks([&client], &rig.outside()));
}

fn a_service_ends_step_by_step_and_comes_again() {
    let mut rig = rig(exposed().external_policy("Local"));
    let client = rig.node().client.clone();
    let inside = [rig.node().pod.clone(), rig.node().netns.clone()];
    for (here, there, outside, inside_sees) in [
        (R::READY, R::READY, Some("pod-1"), vec!["pod-1", "backend-1"]),
        (R::DRAINING, R::READY, Some("pod-1"), vec!["backend-1"]),
        (R::DRAINING, R::DRAINING, Some("pod-1"), vec!["pod-1", "backend-1"]),
        (R::GONE, R::DRAINING, None, vec!["backend-1"]),
        (R::UNREADY, R::READY, None, vec!["backend-1"]),
        (R::READY, R::DRAINING, Some("pod-1"), vec!["pod-1"]),
        (R::READY, R::READY, Some("pod-1"), vec!["pod-1", "backend-1"]),
    ] {
        endpoints_are(&mut rig, &[("pod-1", here), ("backend-1", there)]);
        match outside {
            Some(name) => answered_by(&asks([&client], &rig.outside()), [name]),
            None => unanswered(&asks([&client], &rig.outside())),
        }
        answered_by(&asks(&inside, &all_ways(&rig)), inside_sees);
    }
    endpoints_are(&mut rig, &[("pod-1", R::GONE), ("backend-1", R::GONE)]);
    refused(&asks([&client], &all_ways(&rig)));
}

fn who_is_not_ready_gets_nothing() {
    let mut rig = rig(web());
    endpoints_are(&mut rig, &[("backend-1", R::UNREADY), ("backend-2", R::READY)]);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-2"]);
    endpoints_are(&mut rig, &[("backend-1", R::READY), ("backend-2", R::UNREADY)]);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1"]);
    endpoints_are(&mut rig, &[("backend-1", R::UNREADY), ("backend-2", R::UNREADY)]);
    refused(&asks(rig.everybody(), &vips(WEB)));
}

fn published_unready_endpoints_are_ready_in_their_slices() {
    let mut rig = rig(web().spec("publishNotReadyAddresses", true));
    // As the controller writes an unready pod, and one that is ending, of such a Service.
    let unready = Readiness {
        ready: true,
        serving: false,
        terminating: false,
    };
    let ending = Readiness {
        ready: true,
        serving: true,
        terminating: true,
    };
    endpoints_are(&mut rig, &[("backend-1", unready), ("backend-2", ending)]);
    answered_by(&asks(rig.everybody(), &vips(WEB)), ["backend-1", "backend-2"]);
    // The field itself tells a proxy nothing.
    endpoints_are(&mut rig, &[("backend-1", R::UNREADY)]);
    refused(&asks(rig.everybody(), &vips(WEB)));
}

/// The IPv4 slice of one backend with these conditions.
fn with_conditions(suffix: &str, backend: usize, conditions: Value) -> Value {
    endpoint_slice(NAMESPACE, "web", suffix, AddressType::IPv4)
        .port("tcp", "TCP", PORT)
        .port("udp", "UDP", PORT)
        .endpoint(&format!("10.128.200.{backend}"), "node-9", R::READY)
        .conditions(conditions)
        .object()
}

fn conditions_that_are_not_said_mean_ready() {
    let mut rig = rig(web());
    let web4 = vips([WEB[0]]);
    for conditions in [
        json!({}),
        json!({"ready": null, "serving": null, "terminating": null}),
        json!({"ready": true}),
        json!({"serving": false}),
    ] {
        rig.apply(with_conditions("one", 1, conditions));
        rig.commit();
        answered_by(&asks(rig.everybody(), &web4), ["backend-1"]);
    }
    // Ending, and serving for all that is known.
    rig.apply(with_conditions("one", 1, json!({"ready": false, "terminating": true})));
    rig.commit();
    answered_by(&asks(rig.everybody(), &web4), ["backend-1"]);
    // Not ready, and not ending for all that is known.
    rig.apply(with_conditions("one", 1, json!({"ready": false})));
    rig.commit();
    refused(&asks(rig.everybody(), &web4));
}

fn the_one_that_is_not_ending_wins() {
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    // In either order of names and of arrival.
    for [first, second] in [[&ready, &ending], [&ending, &ready]] {
        let mut rig = rig(web());
        rig.apply(with_conditions("a", 1, first.clone()));
        rig.apply(with_conditions("b", 1, second.clone()));
        rig.apply(with_conditions("c", 2, ready.clone()));
        rig.commit();
        answered_by(&asks(rig.everybody(), &vips([WEB[0]])), ["backend-1", "backend-2"]);
        rig.apply(with_conditions("a", 1, ending.clone()));
        rig.apply(with_conditions("b", 1, ending.clone()));
        rig.commit();
        answered_by(&asks(rig.everybody(), &vips([WEB[0]])), ["backend-2"]);
    }
}

fn an_endpoint_in_two_slices_counts_once() {
    let ready = json!({"ready": true});
    let mut rig = rig(web());
    for suffix in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        rig.apply(with_conditions(suffix, 1, ready.clone()));
    }
    rig.apply(with_conditions("z", 2, ready));
    rig.commit();
    let ask = &asks([&rig.node().client], &vips([WEB[0]]))[0];
    let of_second = (0..200).filter(|_| ask.answer() == "backend-2").count();
    // Half of them, give or take five standard deviations; a ninth would be 22.
    assert!((65..=135).contains(&of_second), "{of_second}");
}

fn it_stays_until_its_last_slice_goes() {
    let ready = json!({"ready": true});
    let mut rig = rig(web());
    rig.apply(with_conditions("a", 1, ready.clone()));
    rig.apply(with_conditions("b", 1, ready));
    rig.commit();
    let web4 = vips([WEB[0]]);
    rig.delete("EndpointSlice", NAMESPACE, "web-a");
    rig.commit();
    answered_by(&asks(rig.everybody(), &web4), ["backend-1"]);
    rig.delete("EndpointSlice", NAMESPACE, "web-b");
    rig.commit();
    refused(&asks(rig.everybody(), &web4));
}
