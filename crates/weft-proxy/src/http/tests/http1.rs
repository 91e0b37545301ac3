//! HTTP/1.1 and 1.0 from end to end, byte by byte.

use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";

#[test]
fn heads_pass_through_byte_by_byte() {
    run(Setup::default(), |mesh| async move {
        let request = "GET /a%20b?q=1 HTTP/1.1\r\nHOST: app\r\nX-CustomID: 1\r\nsoapAction: \"x\"\r\n\
                       x-customid: 2\r\nX-CustomID: 3\r\nCookie: a=b\r\nAccept: */*\r\n\r\n";
        let response = "HTTP/1.1 299 So So\r\nX-Trace:  a\r\nSet-Cookie: 1\r\nx-y: z\r\n\
                        set-cookie: 2\r\ncontent-LENGTH: 2\r\n\r\n";
        let mut client = mesh.client().await;
        client.send(request).await;
        let mut app = mesh.app().await;
        assert_eq!(app.head().await, request);
        app.send(response).await;
        app.send("ok").await;
        assert_eq!(client.head().await, response);
        assert_eq!(client.bytes(2).await, "ok");
        mesh.expect_requests(&["reporter=\"destination\"", "response_code=\"299\""], 1).await;
    });
}

#[test]
fn connections_are_kept_on_both_sides_and_pipelining_works() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send([GET, GET, GET].concat()).await;
        let mut app = mesh.app().await;
        for _ in 0..3 {
            assert_eq!(app.head().await, GET);
            app.send(OK).await;
            assert_eq!(client.bytes(OK.len()).await, OK);
        }
        client.send(GET).await;
        assert_eq!(app.head().await, GET);
        app.send(OK).await;
        assert_eq!(client.bytes(OK.len()).await, OK);
        mesh.expect_no_app().await;
        mesh.expect_requests(&["response_code=\"200\"", "response_flags=\"-\""], 4).await;
    });
}

#[test]
fn bodies_stream_both_ways_at_once() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        let head = "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(head).await;
        client.send("3\r\nabc\r\n").await;
        let mut app = mesh.app().await;
        assert_eq!(app.head().await, head);
        assert_eq!(app.until("abc\r\n").await, "3\r\nabc\r\n");
        // The answer begins before the request has ended, and each side hears the other.
        app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        client.head().await;
        for piece in ["one", "two", "three"] {
            let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
            client.send(&chunk).await;
            assert_eq!(app.bytes(chunk.len()).await, chunk);
            app.send(&chunk).await;
            assert_eq!(client.bytes(chunk.len()).await, chunk);
        }
        client.send("0\r\nX-End: request\r\n\r\n").await;
        assert_eq!(app.until("\r\n\r\n").await, "0\r\nX-End: request\r\n\r\n");
        app.send("0\r\nX-End: response\r\n\r\n").await;
        assert_eq!(client.until("\r\n\r\n").await, "0\r\nX-End: response\r\n\r\n");
        mesh.expect_requests(&["response_code=\"200\""], 1).await;
    });
}

#[test]
fn large_bodies_arrive_whole_under_back_pressure() {
    run(Setup::default(), |mesh| async move {
        const SIZE: usize = 8 << 20;
        let body: String = (0..SIZE).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
        let mut client = mesh.client().await;
        client.send(format!("PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: {SIZE}\r\n\r\n")).await;
        let mut app = mesh.app().await;
        app.head().await;
        let ((), got) = tokio::join!(client.send(&body), app.bytes(SIZE));
        assert!(got == body, "the request body changed on its way");
        let answer = async {
            app.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
            app.send(&body).await;
        };
        let read = async {
            client.head().await;
            client.bytes(SIZE).await
        };
        let ((), got) = tokio::join!(answer, read);
        assert!(got == body, "the response body changed on its way");
    });
}

#[test]
fn a_large_body_of_known_length_comes_as_it_is_sent_and_the_connection_goes_on() {
    run(Setup::default(), |mesh| async move {
        const SIZE: usize = 300_000;
        const HALF: usize = SIZE / 2;
        let body: String = (0..SIZE).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        for last in [false, true] {
            app.head().await;
            app.send(&head).await;
            client.head().await;
            app.send(&body[..HALF]).await;
            assert!(client.bytes(HALF).await == body[..HALF], "the first half changed");
            if !last {
                app.send(&body[HALF..]).await;
                assert!(client.bytes(SIZE - HALF).await == body[HALF..], "the other half changed");
                client.send(GET).await;
            }
        }
        app.send("xyz").await;
        drop(app);
        assert_eq!(client.rest().await, "xyz", "cut with its endpoint");
        mesh.expect_requests(&["response_flags=\"UC\"", "response_code=\"200\""], 1).await;
    });
}

#[test]
fn expect_continue_is_passed_end_to_end() {
    run(Setup::default(), |mesh| async move {
        let head =
            "POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
        let mut client = mesh.client().await;
        client.send(head).await;
        let mut app = mesh.app().await;
        assert_eq!(app.head().await, head);
        app.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        assert_eq!(client.head().await, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
        client.send("body").await;
        assert_eq!(app.bytes(4).await, "body");
        app.send(OK).await;
        assert_eq!(client.bytes(OK.len()).await, OK);
    });
}

#[test]
fn an_early_answer_without_the_body_closes_the_connection_cleanly() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 1000000\r\n\r\nstart").await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 0\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 413"), "{head}");
        assert_eq!(client.rest().await, "");
        mesh.expect_requests(&["response_code=\"413\""], 1).await;
    });
}

#[test]
fn http_1_0_gets_what_it_understands() {
    run(Setup::default(), |mesh| async move {
        // Nobody keeps a client waiting for the end of its body: even on a busy machine one of
        // five closes far sooner than Envoy's delayed close of a second.
        let mut soonest = Duration::MAX;
        let mut app = None;
        for _ in 0..5 {
            let mut client = mesh.client().await;
            client.send("GET / HTTP/1.0\r\n\r\n").await;
            let app = match &mut app {
                Some(app) => app,
                app => app.insert(mesh.app().await),
            };
            let head = app.head().await;
            assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
            app.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
                .await;
            let since = Instant::now();
            assert_eq!(client.rest().await, "HTTP/1.0 200 OK\r\n\r\nok");
            soonest = soonest.min(since.elapsed());
        }
        assert!(soonest < Duration::from_millis(900), "closing lingers");

        let app = app.as_mut().unwrap();
        let mut client = mesh.client().await;
        for _ in 0..2 {
            client.send("GET / HTTP/1.0\r\nHost: app\r\nConnection: keep-alive\r\n\r\n").await;
            assert_eq!(app.head().await, GET);
            app.send(OK).await;
            let expect = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n";
            assert_eq!(client.head().await, expect);
            assert_eq!(client.bytes(2).await, "ok");
        }
    });
}

#[test]
fn http_1_0_gets_a_large_body_whole() {
    run(Setup::default(), |mesh| async move {
        let body = "0123456789abcdef".repeat(64 * 1024);
        let mut client = mesh.client().await;
        client.send("GET / HTTP/1.0\r\nX-CustomID: 1\r\n\r\n").await;
        let mut app = mesh.app().await;
        // Spelling is kept for old clients, too.
        assert!(app.head().await.contains("\r\nX-CustomID: 1\r\n"));
        let answer = async {
            app.send("HTTP/1.1 200 OK\r\nX-AnswerID: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            app.send(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())).await;
        };
        let ((), all) = tokio::join!(answer, client.rest());
        let (head, rest) = all.split_once("\r\n\r\n").unwrap();
        assert_eq!(head, "HTTP/1.0 200 OK\r\nX-AnswerID: 1");
        assert!(rest == body, "{} of {} bytes arrived", rest.len(), body.len());
    });
}

#[test]
fn bodiless_answers_stay_bodiless() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        let mut app = None;
        for (method, answer) in [
            ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"),
        ] {
            client.send(format!("{method} / HTTP/1.1\r\nHost: app\r\n\r\n")).await;
            if app.is_none() {
                app = Some(mesh.app().await);
            }
            let app = app.as_mut().unwrap();
            app.head().await;
            app.send(answer).await;
            assert_eq!(client.head().await, answer);
        }
    });
}

#[test]
fn ambiguous_requests_are_refused_and_never_forwarded() {
    run(Setup::default(), |mesh| async move {
        for (request, status) in [
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
                400,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                400,
            ),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
            ("GET / HTTP/1.1\nHost: a\n\n", 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
            ("garbage\r\n\r\n", 400),
            ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 403),
        ] {
            let mut client = mesh.client().await;
            client.send(request).await;
            let head = client.head().await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {head}");
            assert!(head.contains("Connection: close") || status == 403, "{request:?}: {head}");
        }
        mesh.expect_no_app().await;
        mesh.expect_requests(&["response_flags=\"DPE\""], 11).await;
    });
}

#[test]
fn a_smuggled_second_request_is_a_second_request() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        let first = "POST /one HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\n";
        client.send([first, "bodyGET /two HTTP/1.1\r\nHost: app\r\n\r\n"].concat()).await;
        let mut app = mesh.app().await;
        assert_eq!(app.head().await, first);
        assert_eq!(app.bytes(4).await, "body");
        app.send(OK).await;
        client.bytes(OK.len()).await;
        assert!(app.head().await.starts_with("GET /two "));
    });
}

#[test]
fn websocket_tunnels_only_after_101() {
    run(Setup::default(), |mesh| async move {
        let upgrade = "GET /chat HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\n\
                       Connection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n";
        let mut client = mesh.client().await;
        client.send(upgrade).await;
        let mut app = mesh.app().await;
        let head = app.head().await.to_lowercase();
        assert!(
            head.contains("upgrade: websocket") && head.contains("connection: upgrade"),
            "{head}"
        );
        app.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst").await;
        let head = client.head().await.to_lowercase();
        assert!(head.starts_with("http/1.1 101") && head.contains("connection: upgrade"), "{head}");
        assert_eq!(client.bytes(5).await, "first");
        client.send("ping").await;
        assert_eq!(app.bytes(4).await, "ping");
        app.send("pong").await;
        assert_eq!(client.bytes(4).await, "pong");
        // Half-close: the other direction goes on.
        client.stream.shutdown().await.unwrap();
        assert_eq!(app.rest().await, "");
        app.send("last").await;
        assert_eq!(client.bytes(4).await, "last");
        drop(app);
        assert_eq!(client.rest().await, "");
        mesh.expect_requests(&["response_code=\"101\""], 1).await;

        // Refused by the application: an ordinary answer, and the connection goes on.
        let mut client = mesh.client().await;
        client.send(upgrade).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send(OK).await;
        assert_eq!(client.bytes(OK.len()).await, OK);
        client.send(GET).await;
        assert_eq!(app.head().await, GET);
    });
}

#[test]
fn upgrades_need_permission() {
    let setup = Setup {
        hcm: json!({"generateRequestId": false, "upgradeConfigs": []}),
        ..Setup::default()
    };
    run(setup, |mesh| async move {
        let mut client = mesh.client().await;
        client
            .send(
                "GET / HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            )
            .await;
        assert!(client.head().await.starts_with("HTTP/1.1 403"));
        mesh.expect_no_app().await;
        // One that nobody here knows is not passed on.
        let mut client = mesh.client().await;
        client
            .send("GET / HTTP/1.1\r\nHost: app\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n")
            .await;
        let head = mesh.app().await.head().await.to_lowercase();
        assert!(!head.contains("upgrade"), "{head}");
    });
}

#[test]
fn hop_by_hop_fields_stay_on_their_hop() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client
            .send("GET / HTTP/1.1\r\nHost: app\r\nConnection: x-mine, keep-alive\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nX-Other: 2\r\n\r\n")
            .await;
        let mut app = mesh.app().await;
        assert_eq!(app.head().await, "GET / HTTP/1.1\r\nHost: app\r\nX-Other: 2\r\n\r\n");
        app.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
        // The upstream's wish concerns the upstream connection alone.
        assert_eq!(client.head().await, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        client.send(GET).await;
        mesh.app().await.head().await;
    });
}

#[test]
fn responses_delimited_by_close_are_chunked_for_1_1() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send("HTTP/1.0 200 OK\r\nX-A: b\r\n\r\nhello").await;
        drop(app);
        let head = client.head().await;
        assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
        assert_eq!(client.until("0\r\n\r\n").await, "5\r\nhello\r\n0\r\n\r\n");
        client.send(GET).await;
        mesh.app().await.head().await;
    });
}

#[test]
fn a_cut_response_is_cut_for_the_client_too() {
    run(Setup::default(), |mesh| async move {
        for (answer, expect) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "half"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "4\r\nhalf\r\n"),
        ] {
            let mut client = mesh.client().await;
            client.send(GET).await;
            let mut app = mesh.app().await;
            app.head().await;
            app.send(answer).await;
            drop(app);
            client.head().await;
            assert_eq!(client.rest().await, expect);
        }
        mesh.expect_requests(&["response_flags=\"UC\"", "response_code=\"200\""], 2).await;
    });
}

#[test]
fn malformed_answers_are_502() {
    run(Setup::default(), |mesh| async move {
        for answer in [
            "nonsense\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            let mut client = mesh.client().await;
            client.send(GET).await;
            let mut app = mesh.app().await;
            app.head().await;
            app.send(answer).await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 502"), "{answer:?}: {head}");
        }
        mesh.expect_requests(&["response_flags=\"UPE\"", "response_code=\"502\""], 3).await;
    });
}

#[test]
fn a_client_that_leaves_is_recorded_once() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhalf").await;
        let mut app = mesh.app().await;
        app.head().await;
        assert_eq!(app.bytes(4).await, "half");
        drop(client);
        // The application must not take half a body for a whole one.
        assert_eq!(app.rest().await, "");
        mesh.expect_requests(&["response_flags=\"DC\"", "response_code=\"0\""], 1).await;
    });
}

#[test]
fn draining_ends_connections_politely() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        mesh.worker.drain.advance(crate::drain::DrainState::Draining);
        app.send(OK).await;
        let head = client.head().await;
        assert!(head.contains("Connection: close"), "{head}");
        assert_eq!(client.rest().await, "ok");
    });
}

#[test]
fn state_is_small() {
    run(Setup::default(), |mesh| async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let context = ConnContext {
            accepted_by: "test".into(),
            listener: mesh.worker.tables().listener("test").unwrap().clone(),
            chain: 0,
            peer: address,
            local: address,
            original_dst: None,
            sni: None,
            tls: None,
            accepted: Instant::now(),
            open: mesh.worker.drain.open(),
        };
        let io = Io::plain(accepted.unwrap().0);
        let serve = serve_connection(io, Rc::new(context), mesh.worker.clone());
        let idle = std::mem::size_of_val(&serve);
        println!("idle connection: {idle} bytes");
        assert!(idle < 2048, "an idle connection's state is {idle} bytes");
        drop(client);
    });
}

#[test]
fn a_changed_configuration_fails_nothing() {
    run(Setup { apps: 2, ..Setup::default() }, |mesh| async move {
        for index in 0..2 {
            let mesh = mesh.clone();
            tokio::task::spawn_local(async move {
                loop {
                    let mut app = mesh.app_at(index).await;
                    tokio::task::spawn_local(async move {
                        loop {
                            while !app.read.windows(4).any(|w| w == b"\r\n\r\n") {
                                if !app.more().await {
                                    return;
                                }
                            }
                            app.head().await;
                            app.send(OK).await;
                        }
                    });
                }
            });
        }
        let mut clients = Vec::new();
        for _ in 0..8 {
            let mut client = mesh.client().await;
            clients.push(tokio::task::spawn_local(async move {
                for _ in 0..50 {
                    client.send(GET).await;
                    assert_eq!(client.bytes(OK.len()).await, OK);
                }
            }));
        }
        let mut swaps = 0;
        while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
            mesh.configure(|setup| {
                setup.action = json!({"timeout": format!("{}s", swaps % 5 + 1)});
            });
            swaps += 1;
            // Reading a configuration costs as much as many requests: let some pass in between.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
        for client in clients {
            client.await.unwrap();
        }
        assert!(swaps > 10, "only {swaps} changes");
        mesh.expect_requests(&["response_code=\"200\""], 400).await;
        mesh.expect_requests(&[], 400).await;
    });
}

#[test]
fn a_client_that_leaves_cancels_its_request() {
    run(Setup::default(), |mesh| async move {
        // Closed, reset and half-closed: each is a client that no longer waits.
        for leave in ["close", "reset", "half-close"] {
            let mut client = mesh.client().await;
            client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 2\r\n\r\nhi").await;
            let mut app = mesh.app().await;
            app.head().await;
            assert_eq!(app.bytes(2).await, "hi");
            match leave {
                "reset" => client.stream.set_zero_linger().unwrap(),
                "half-close" => client.stream.shutdown().await.unwrap(),
                _ => {}
            }
            let kept = (leave == "half-close").then_some(client);
            assert_eq!(app.rest().await, "", "{leave}: the application's connection stays open");
            drop(kept);
        }
        mesh.expect_requests(&["response_flags=\"DC\"", "response_code=\"0\""], 3).await;
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_of_the_response_cancels_it() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nstart").await;
        client.until("start").await;
        drop(client);
        assert_eq!(app.rest().await, "");
        mesh.expect_requests(&["response_flags=\"DC\""], 1).await;
    });
}

#[test]
fn requests_behind_the_one_being_served_do_not_hide_that_the_client_left() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send([GET, GET].concat()).await;
        let mut app = mesh.app().await;
        app.head().await;
        drop(client);
        assert_eq!(app.rest().await, "");
        mesh.expect_requests(&["response_flags=\"DC\""], 1).await;
    });
}

#[test]
fn compression_for_the_transfer_goes_only_where_it_can_be_said() {
    run(Setup::default(), |mesh| async move {
        let coded = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n\
                     2\r\nzz\r\n0\r\n\r\n";
        let mut client = mesh.client().await;
        client.send(GET).await;
        let mut app = mesh.app().await;
        app.head().await;
        app.send(coded).await;
        assert_eq!(client.bytes(coded.len()).await, coded);

        let mut client = mesh.client().await;
        client.send("GET / HTTP/1.0\r\nHost: app\r\n\r\n").await;
        app.head().await;
        app.send(coded).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.0 502 "), "{head}");
        mesh.expect_requests(&["response_flags=\"UPE\"", "response_code=\"502\""], 1).await;

        let mut client = mesh.client().await;
        client
            .send("POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")
            .await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 501 "), "{head}");
    });
}

#[test]
fn the_spelling_list_is_nobodys_but_ours() {
    run(Setup::default(), |mesh| async move {
        let mut client = mesh.client().await;
        client.send("GET / HTTP/1.1\r\nX-Weft-Spelling: a,HOST\r\nHost: app\r\nA: b\r\n\r\n").await;
        let mut app = mesh.app().await;
        assert_eq!(app.head().await, "GET / HTTP/1.1\r\nHost: app\r\nA: b\r\n\r\n");
        app.send("HTTP/1.1 103 Early\r\nx-weft-spelling: LINK\r\nLink: x\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 103 Early\r\nLink: x\r\n\r\n");
        app.send(
            "HTTP/1.1 200 OK\r\nX-Weft-Spelling: a\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n\
             0\r\nx-weft-spelling: end\r\nEnd: 1\r\n\r\n",
        )
        .await;
        let head = "HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(client.head().await, head);
        assert_eq!(client.head().await, "0\r\nEnd: 1\r\n\r\n");
    });
}

#[test]
fn repeated_content_types_are_the_workloads_choice() {
    use crate::http::policy::SingletonHeaders;
    for (choice, expect) in [
        (SingletonHeaders::First, Some("Content-Type: a\r\nX: y\r\n")),
        (SingletonHeaders::Last, Some("Content-Type: b\r\nX: y\r\n")),
        (SingletonHeaders::Join, Some("Content-Type: a, b\r\nX: y\r\n")),
        (SingletonHeaders::Reject, None),
    ] {
        let policy = HttpPolicy { singleton_headers: choice, ..HttpPolicy::default() };
        run(Setup { policy, ..Setup::default() }, |mesh| async move {
            let mut client = mesh.client().await;
            client
                .send(
                    "PUT / HTTP/1.1\r\nHost: app\r\nContent-Type: a\r\nX: y\r\n\
                     content-type: b\r\nContent-Length: 0\r\n\r\n",
                )
                .await;
            let Some(lines) = expect else {
                assert!(client.head().await.starts_with("HTTP/1.1 400 "));
                return;
            };
            let expect = format!("PUT / HTTP/1.1\r\nHost: app\r\n{lines}Content-Length: 0\r\n\r\n");
            assert_eq!(mesh.app().await.head().await, expect);
            let counter = "weft_proxy_http_quirks_total{quirk=\"content_type_repeated\"}";
            mesh.expect_counter(counter, 1).await;
        });
    }
}

#[test]
fn a_response_chunked_twice_is_a_502_unless_tolerated() {
    for tolerate_repeated_chunked in [false, true] {
        let policy = HttpPolicy { tolerate_repeated_chunked, ..HttpPolicy::default() };
        run(Setup { policy, ..Setup::default() }, |mesh| async move {
            let mut client = mesh.client().await;
            client.send(GET).await;
            let mut app = mesh.app().await;
            app.head().await;
            app.send(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n\
                 2\r\nok\r\n0\r\n\r\n",
            )
            .await;
            let head = client.head().await;
            if tolerate_repeated_chunked {
                assert_eq!(head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                assert_eq!(client.head().await, "2\r\nok\r\n0\r\n\r\n");
            } else {
                assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
                mesh.expect_requests(&["response_flags=\"UPE\""], 1).await;
            }
            let counter = "weft_proxy_http_quirks_total{quirk=\"chunked_repeated\"}";
            mesh.expect_counter(counter, 1).await;
        });
    }
}

#[test]
fn http_1_0_is_refused_where_workload_or_listener_ask() {
    let policy = HttpPolicy { refuse_http10: true, ..HttpPolicy::default() };
    let says = |options| Setup { hcm: json!({"httpProtocolOptions": options}), ..Setup::default() };
    for (setup, accepted) in [
        (Setup { policy, ..says(json!({"acceptHttp10": true})) }, false),
        (says(json!({"enableTrailers": true})), false),
        (says(json!({"acceptHttp10": true})), true),
        (Setup::default(), true),
    ] {
        run(setup, |mesh| async move {
            let mut client = mesh.client().await;
            client.send("GET / HTTP/1.0\r\n\r\n").await;
            if accepted {
                mesh.app().await.head().await;
                return;
            }
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{head}");
            mesh.expect_counter("weft_proxy_http_quirks_total{quirk=\"http10_refused\"}", 1).await;
            mesh.expect_no_app().await;
        });
    }
}
