//! A server without its database.

use std::time::Duration;

use nftfleet_tests::api::Api;
use nftfleet_tests::lab::{CONTROL4, Lab, LabSpec};
use nftfleet_tests::process::Process;
use nftfleet_tests::wait;
use nftfleet_tests::world::OPERATOR_TOKEN;
use nftfleet_web_api_spec::problem::{Problem, ProblemCode};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_server_that_cannot_reach_postgres_says_so_and_tries_again() {
    let lab = Lab::new(&LabSpec::dual_stack(1, 1));
    lab.control.enter();
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("server.log");
    let base = format!("http://{CONTROL4}:8640");
    let arguments = [
        "--listen",
        &base["http://".len()..],
        "--database-url",
        "postgres://nobody@127.0.0.1:1/none",
    ];
    let environment = [("NFTFLEET_OPERATOR_TOKEN", OPERATOR_TOKEN)];
    let mut server = Process::start(
        "the server",
        &lab.control,
        "nftfleet-server",
        &arguments,
        &environment,
        &log,
    );
    wait::until_blocking("a second try", LIMIT, || {
        let text = std::fs::read_to_string(&log).ok()?;
        (text.matches("can't reach Postgres at").count() >= 2).then_some(())
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let api = Api::new(&base, OPERATOR_TOKEN);
        assert!(!api.is_ready().await);
        let answer = reqwest::get(format!("{base}/readyz"))
            .await
            .expect("the server answers");
        assert_eq!(answer.status(), 503);
        let problem: Problem = answer.json().await.expect("a problem");
        assert_eq!(problem.code, ProblemCode::StoreUnavailable);
        assert_eq!(
            reqwest::get(format!("{base}/healthz"))
                .await
                .expect("the server answers")
                .status(),
            200
        );
    });
    server.terminate();
}
