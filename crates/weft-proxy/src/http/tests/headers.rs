//! `docs/headers.md` says what happens to header lines; its tables are sent through the proxy here.

use super::*;

const DOC: &str = include_str!("../../../../../docs/headers.md");
/// The columns of the tables, and how the control plane sets up a listener of that kind.
const DIRECTIONS: [(&str, &str); 3] =
    [("INBOUND", "APPEND_FORWARD"), ("OUTBOUND", "SANITIZE"), ("UNSPECIFIED", "SANITIZE_SET")];

/// One row: the line (or name), and one word for each direction.
struct Row {
    line: &'static str,
    fates: [&'static str; 3],
}

/// The rows under a heading of the document.
fn table(heading: &str) -> Vec<Row> {
    let section = DOC.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        Row { line: cells[0].trim_matches('`'), fates: [cells[1], cells[2], cells[3]] }
    });
    let rows: Vec<Row> = rows.collect();
    assert!(!rows.is_empty(), "no table under {heading:?}");
    rows
}

fn setup(direction: usize) -> Setup {
    let (direction, client_cert) = DIRECTIONS[direction];
    let hcm = json!({
        "forwardClientCertDetails": client_cert,
        "useRemoteAddress": direction == "UNSPECIFIED",
        "tracing": {
            "clientSampling": {"value": 100},
            "randomSampling": {"value": 100},
            "overallSampling": {"value": 100},
        },
    });
    Setup { direction, hcm, ..Setup::default() }
}

fn name_of(line: &str) -> &str {
    line.split(':').next().unwrap_or(line)
}

/// Each sent line has the fate the table says; no line arrives that the table does not explain.
fn check(sent: &[Row], direction: usize, arrived: &str) {
    let lines: Vec<&str> = arrived.lines().skip(1).filter(|line| !line.is_empty()).collect();
    let named = |name: &str| lines.iter().any(|line| name_of(line).eq_ignore_ascii_case(name));
    for Row { line, fates } in sent {
        let (fate, there) = (fates[direction], lines.contains(line));
        let met = match fate {
            "kept" => there,
            "dropped" => !there,
            "changed" => !there && named(name_of(line)),
            other => panic!("{other:?} is no fate"),
        };
        assert!(met, "{:?}: {line:?} is not {fate}:\n{arrived}", DIRECTIONS[direction].0);
    }
    let kept: Vec<&str> =
        sent.iter().filter(|row| row.fates[direction] == "kept").map(|row| row.line).collect();
    let mut left = lines.iter();
    assert!(kept.iter().all(|line| left.any(|other| other == line)), "not in order:\n{arrived}");
}

#[test]
fn requests_are_treated_as_documented() {
    for direction in [0, 1, 2] {
        run(setup(direction), |mesh| async move {
            let rows = table("Requests");
            let mut request = "GET / HTTP/1.1\r\nHost: app\r\n".to_owned();
            for row in &rows {
                request += &format!("{}\r\n", row.line);
            }
            let mut client = mesh.client().await;
            client.send(request + "\r\n").await;
            check(&rows, direction, &mesh.app().await.head().await);
        });
    }
}

#[test]
fn nothing_is_added_but_what_is_documented() {
    for direction in [0, 1, 2] {
        run(setup(direction), |mesh| async move {
            let mut client = mesh.client().await;
            client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
            let head = mesh.app().await.head().await;
            let mut added: Vec<&str> =
                head.lines().skip(2).filter(|line| !line.is_empty()).map(name_of).collect();
            added.sort_unstable();
            let rows = table("Added to requests");
            let rows = rows.iter().filter(|row| row.fates[direction] == "added");
            let mut expect: Vec<&str> = rows.map(|row| row.line).collect();
            expect.sort_unstable();
            assert_eq!(added, expect, "{:?}", DIRECTIONS[direction].0);
        });
    }
}

#[test]
fn responses_are_treated_as_documented() {
    for direction in [0, 1, 2] {
        run(setup(direction), |mesh| async move {
            let rows = table("Responses");
            let mut client = mesh.client().await;
            client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
            let mut app = mesh.app().await;
            app.head().await;
            let mut response = "HTTP/1.1 200 Fine\r\nContent-Length: 0\r\n".to_owned();
            for row in &rows {
                response += &format!("{}\r\n", row.line);
            }
            app.send(response + "\r\n").await;
            let head = client.head().await;
            check(&rows, direction, &head);
            let known = |line: &&str| rows.iter().any(|row| name_of(row.line) == name_of(line));
            let added = head.lines().skip(2).filter(|line| !line.is_empty()).find(|l| !known(l));
            assert_eq!(added, None, "{:?}:\n{head}", DIRECTIONS[direction].0);
        });
    }
}

#[test]
fn server_and_date_are_as_configured() {
    // `server_header_transformation` and `server_name`; what a reply made here, a response that
    // names its server and one that does not say then.
    let table = [
        ("PASS_THROUGH", "istio-envoy", [Some("istio-envoy"), Some("mine"), None]),
        ("PASS_THROUGH", "", [None, Some("mine"), None]),
        ("APPEND_IF_ABSENT", "a", [Some("a"), Some("mine"), Some("a")]),
        ("OVERWRITE", "a", [Some("a"); 3]),
        ("OVERWRITE", "", [Some("envoy"); 3]),
    ];
    for (transformation, name, expect) in table {
        let hcm = json!({"serverHeaderTransformation": transformation, "serverName": name});
        let here = json!({"match": {"path": "/here"}, "directResponse": {"status": 418}});
        let app = json!({"match": {"prefix": "/"}, "route": {"cluster": "app"}});
        let host = json!({"routes": [here, app]});
        run(Setup { hcm, host, ..Setup::default() }, |mesh| async move {
            let mut client = mesh.client().await;
            client.send("GET /here HTTP/1.1\r\nHost: app\r\n\r\n").await;
            let mut heads = vec![client.head().await];
            for server in ["Server: mine\r\n", ""] {
                client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").await;
                let mut app = mesh.app().await;
                app.head().await;
                let close = "Connection: close\r\nContent-Length: 0\r\n\r\n";
                app.send(format!("HTTP/1.1 200 OK\r\n{server}{close}")).await;
                heads.push(client.head().await);
            }
            for (head, expect) in heads.iter().zip(expect) {
                assert_eq!(value_of(head, "server"), expect, "{transformation} {name:?}:\n{head}");
            }
            let date = value_of(&heads[0], "date").expect("a reply made here has a date");
            httpdate::parse_http_date(date).unwrap();
            assert_eq!(value_of(&heads[1], "date"), None, "nothing is added to what passes");
        });
    }
}

fn value_of<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let line = head.lines().find(|line| name_of(line).eq_ignore_ascii_case(name))?;
    line.split_once(": ").map(|(_, value)| value)
}

#[test]
fn names_are_lower_case_where_the_workload_wants_that() {
    let policy = HttpPolicy { lowercase_header_names: true, ..HttpPolicy::default() };
    let hcm = json!({"generateRequestId": false, "httpProtocolOptions": {"enableTrailers": true}});
    run(Setup { policy, hcm, ..Setup::default() }, |mesh| async move {
        let mut client = mesh.client().await;
        client
            .send(
                "POST / HTTP/1.1\r\nHost: app\r\nX-CustomID: A\r\nx-customid: B\r\n\
                 TE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n\
                 0\r\nX-Trailer: C\r\n\r\n",
            )
            .await;
        let mut app = mesh.app().await;
        let head = app.head().await;
        assert!(head.contains("\r\nx-customid: A\r\nx-customid: B\r\n"), "{head}");
        assert_eq!(app.head().await, "0\r\nx-trailer: C\r\n\r\n");
        let end = "0\r\nX-Sum: E\r\n\r\n";
        let chunked = "Transfer-Encoding: chunked\r\n\r\n";
        app.send(format!("HTTP/1.1 200 OK\r\nX-Answer: D\r\n{chunked}{end}")).await;
        let head = client.head().await;
        assert!(head.contains("\r\nx-answer: D\r\n"), "{head}");
        assert_eq!(client.head().await, "0\r\nx-sum: E\r\n\r\n");
    });
}

#[test]
fn an_answer_that_ends_the_connection_says_so() {
    run(Setup::default(), |mesh| async move {
        // The application refuses a body of which the rest is still to come.
        let mut client = mesh.client().await;
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 9\r\n\r\nabc").await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send("HTTP/1.1 413 Too Much\r\nContent-Length: 0\r\n\r\n").await;
        let head = client.head().await;
        assert_eq!(value_of(&head, "connection"), Some("close"), "{head}");
        // What cannot be read is refused here.
        let mut client = mesh.client().await;
        client.send("GET / HTTP/1.1\r\nHost: app\r\nHost: app\r\n\r\n").await;
        let head = client.head().await;
        assert_eq!(value_of(&head, "connection"), Some("close"), "{head}");
    });
}
