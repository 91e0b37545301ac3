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
