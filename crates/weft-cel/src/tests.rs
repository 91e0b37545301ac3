use super::*;

struct World;

impl Attributes for World {
    fn get(&self, path: &[&str]) -> Option<Value<'_>> {
        Some(match path {
            ["response", "code"] => Value::Int(503),
            ["response", "flags"] => Value::Int(2),
            ["connection", "mtls"] => Value::Bool(true),
            ["request", "url_path"] => Value::Text("/api/v1/users".into()),
            ["request", "headers", "x-user"] => Value::Text("jason".into()),
            ["request", "duration"] => Value::Double(1.5),
            _ => return None,
        })
    }
}

fn value(text: &str) -> String {
    let program = match Program::compile(text) {
        Ok(program) => program,
        Err(error) => return format!("refused {error}"),
    };
    match program.evaluate(&World) {
        Ok(value) => value.to_text(),
        Err(NoValue) => "no value".to_owned(),
    }
}

#[test]
fn expressions_have_values() {
    for (text, expect) in [
        ("response.code >= 400", "true"),
        ("response.code == 200 || response.code >= 500", "true"),
        ("response.code >= 500 && connection.mtls", "true"),
        ("!connection.mtls", "false"),
        ("request.url_path.contains('v1')", "true"),
        ("request.url_path.startsWith(\"/api\") && request.url_path.endsWith('users')", "true"),
        ("request.url_path.matches('^/api/v[0-9]+/')", "true"),
        ("matches(request.url_path, '^/other')", "false"),
        ("request.headers['X-User'] == 'jason'", "true"),
        ("has(request.headers['x-user'])", "true"),
        ("has(request.headers.missing)", "false"),
        ("response.code in [500, 503]", "true"),
        ("'v' + string(response.code / 100)", "v5"),
        ("response.code >= 500 ? 'bad' : 'good'", "bad"),
        ("size(request.url_path) > 3", "true"),
        ("request.duration * 2 > 2", "true"),
        ("1 + 2 * 3 - -1", "8"),
        ("(1 + 2) * 3 % 4", "1"),
        ("int('7') == 7", "true"),
        ("1 == 1.0", "true"),
        ("null == null", "true"),
        ("request.headers['x-user'].upperAscii()", "JASON"),
        ("r'\\d' == '\\\\d'", "true"),
    ] {
        assert_eq!(value(text), expect, "{text}");
    }
}

#[test]
fn what_is_missing_makes_no_value_unless_the_rest_decides() {
    for (text, expect) in [
        ("request.host == 'a'", "no value"),
        ("request.host == 'a' || response.code == 503", "true"),
        ("request.host == 'a' && response.code == 200", "false"),
        ("request.host == 'a' && response.code == 503", "no value"),
        ("'a' < 1", "no value"),
        ("1 / 0", "no value"),
        ("9223372036854775807 + 1", "no value"),
    ] {
        assert_eq!(value(text), expect, "{text}");
    }
    assert!(!Program::compile("request.host == 'a'").unwrap().holds(&World));
}

#[test]
fn bad_expressions_are_refused_with_their_place() {
    for (text, expect) in [
        ("", "refused at character 0: the expression ends too early"),
        ("a ==", "refused at character 4: the expression ends too early"),
        ("a b", "refused at character 2: unexpected \"b\""),
        ("'open", "refused at character 0: the text is not closed"),
        ("nope(1)", "refused at character 0: the function \"nope\" is not supported"),
        ("a.matches('(')", "bad pattern"),
        ("a.matches(b)", "refused at character 10: the pattern must be a literal"),
        ("#", "refused at character 0: unexpected '#'"),
        ("99999999999999999999", "refused at character 0: the number is too large"),
        ("[1,2].exists(x, x > 1)", "not supported"),
    ] {
        let found = value(text);
        assert!(found.contains(expect), "{text}: {found}");
    }
    let deep = |text: &str| value(&text.repeat(2000));
    assert!(deep("(").contains("nested too deeply"), "{}", deep("("));
    assert!(deep("!").contains("nested too deeply"));
    assert!(deep("abc").contains("more than 4096 bytes"));
    assert!(deep("a?").contains("expected") || deep("a?").contains("deeply"));
}

#[test]
fn attributes_are_told() {
    let program = Program::compile("request.host == 'a' ? response.code > 1 : has(a.b)").unwrap();
    let expect = vec![vec!["request", "host"], vec!["response", "code"], vec!["a", "b"]];
    assert_eq!(program.attributes(), expect);
}
