use std::path::PathBuf;

use super::Shell;
use crate::io::{Input, Io, Output};

/// What a script prints, what it says is wrong, and how it ends.
fn run(script: &str) -> (String, String, u8) {
    let dir = std::env::temp_dir();
    run_in(script, dir)
}

fn run_in(script: &str, directory: PathBuf) -> (String, String, u8) {
    let environment = [("HOME".to_owned(), "/root".to_owned()), ("SPACED".to_owned(), "a  b".to_owned())];
    let mut shell = Shell::new(environment, directory);
    let (output, errors) = (Output::buffer(), Output::buffer());
    let mut io = Io { input: Input::bytes(Vec::new()), output: output.clone(), errors: errors.clone() };
    let status = shell.main(&["-c".to_owned(), script.to_owned()], &mut io);
    let text = |output: Output| String::from_utf8_lossy(&output.taken()).into_owned();
    (text(output), text(errors), status)
}

#[test]
fn scripts_print_what_a_shell_prints() {
    for (script, expected) in [
        ("echo hello   world", "hello world\n"),
        ("/bin/echo -n DONE", "DONE"),
        ("echo 'a $HOME' \"b $HOME\" c\\ d", "a $HOME b /root c d\n"),
        ("echo $SPACED; echo \"$SPACED\"", "a b\na  b\n"),
        ("X=1; X=2 env | grep -c '^X=2$'; echo $X", "1\n1\n"),
        ("TEST_VAR=wrong echo \"x$TEST_VAR\"", "x\n"),
        ("echo $((1 + 2 * 3)) $(( (1+2) % 2 == 1 ? 7 : 8 )) $((-3))", "7 7 -3\n"),
        ("i=0; while [ $i -lt 3 ]; do echo $i; i=$((i+1)); done", "0\n1\n2\n"),
        ("for i in `seq 1 3`; do [ $i = 2 ] && continue; echo $i; done", "1\n3\n"),
        ("for i in a b; do for j in 1 2; do break 2; done; done; echo $i$j", "a1\n"),
        ("if false; then echo a; elif true; then echo b; else echo c; fi", "b\n"),
        ("case foo.txt in *.md|a) echo no;; f*.tx?) echo yes;; *) echo none;; esac", "yes\n"),
        ("[[ \"${HOME:?}\" == \"/ro\"* && ! -z x ]] && echo OK || echo no", "OK\n"),
        ("[[ a == \"*\" ]] || echo quoted", "quoted\n"),
        ("echo ${NONE:-fallback} ${HOME:+set} ${HOME#/} ${HOME%%o*} ${#HOME}", "fallback set root /r 5\n"),
        ("f() { echo \"f $1 $#\"; return 3; }; f x y; echo $?", "f x 2\n3\n"),
        ("echo a b c | awk '{print $2}'; echo x | cat", "b\nx\n"),
        ("count=$(printf 'a\\nb\\n' | wc -l | awk {'print $1'}); echo $count", "2\n"),
        ("(X=inner; exit 4); echo $? $X", "4\n"),
        ("echo a; echo b >&2; echo c 2>/dev/null", "a\nc\n"),
        ("cat <<EOF\nhome $HOME\nEOF\necho after", "home /root\nafter\n"),
        ("cat <<'EOF'\nhome $HOME\nEOF", "home $HOME\n"),
        ("printf 'a b\\nc\\n' | while read x y; do echo $x-$y; done", "a-b\nc-\n"),
        ("set -- 1 '2 3'; for x in \"$@\"; do echo \"<$x>\"; done; shift; echo $#", "<1>\n<2 3>\n1\n"),
        ("test -d /nowhere; echo $?", "1\n"),
        ("! false && echo negated", "negated\n"),
        ("trap 'echo bye' EXIT; echo hi", "hi\nbye\n"),
        ("x=$(false); echo $?; y=$(echo 1); echo $?", "1\n0\n"),
        ("echo one # comment\n# another\necho two", "one\ntwo\n"),
        ("eval 'x=5'; echo $x; unset x; echo \"[$x]\"", "5\n[]\n"),
        ("expr 7 % 2; seq 3 -1 1 | sort | head -n 1 | tr 1 x", "1\nx\n"),
        ("echo a:b:c | cut -d: -f2,3; basename /a/b.c .c; dirname /a/b", "b:c\nb\n/a\n"),
        ("command -v sleep >/dev/null && echo there; nothing 2>/dev/null || echo $?", "there\n127\n"),
        ("test \"$(expr 3 % 2)\" -ne 0 -a -n x && echo odd", "odd\n"),
        ("printf 36ab | hexdump -C", "00000000  33 36 61 62                                       |36ab|\n00000004\n"),
        (
            "printf abc | gzip | hexdump -C",
            "00000000  1f 8b 08 00 00 00 00 00  00 ff 01 03 00 fc ff 61  |...............a|\n\
             00000010  62 63 c2 41 24 35 03 00  00 00                    |bc.A$5....|\n0000001a\n",
        ),
        ("true; X=a; case \"$X\" in a) ;; esac; echo $?", "0\n"),
    ] {
        assert_eq!(run(script).0, expected, "{script}");
    }
}

#[test]
fn scripts_end_as_they_say() {
    for (script, expected) in [
        ("exit 42", 42),
        ("/bin/true", 0),
        ("/bin/false", 1),
        ("sh -c 'exit 7'", 7),
        ("set -e; false; echo not reached", 1),
        ("set -e; if false; then :; fi; false || true; exit 3", 3),
        ("exit $((1 + 1))", 2),
        ("echo ${NONE:?}", 2),
        ("echo 'open", 2),
        ("if true; then echo a", 2),
        ("nothing", 127),
        ("sleep 1 &", 2),
        ("exec sh -c 'exit 9'; exit 1", 9),
        ("f() { f; }; f", 2),
        ("trap 'exit 5' EXIT; exit 4", 5),
        ("while true; do exit 6; done", 6),
    ] {
        assert_eq!(run(script).2, expected, "{script}");
    }
    // However deep, it is refused and does not end the program.
    let deep = format!("{}true{}", "(".repeat(500), ")".repeat(500));
    assert_eq!(run(&deep).2, 2);
    assert_eq!(run(&format!("echo $(({}1{}))", "(".repeat(500), ")".repeat(500))).2, 2);
}

#[test]
fn files_are_what_programs_work_on() {
    let dir = std::env::temp_dir().join(format!("toolbox-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let script = "
f=restarts
count=$(echo 'hello' >> $f ; wc -l $f | awk {'print $1'})
if [ $count -eq 1 ]; then
	exit 1
fi
if [[ -r marker-$count ]]
then
	cat marker-*
	rm -rf marker-2
	test -e marker-2 || mkdir -p d/e
	mv $f d/e && ls d/e
	exit 0
else
	echo marked > marker-$count
	exit $((40 + count))
fi
";
    assert_eq!(run_in(script, dir.clone()).2, 1);
    assert_eq!(run_in(script, dir.clone()).2, 42);
    std::fs::write(dir.join("restarts"), "hello\n").unwrap();
    assert_eq!(run_in(script, dir.clone()), ("marked\nrestarts\n".to_owned(), String::new(), 0));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_shell_without_a_script_runs_what_its_input_says_when_it_is_said() {
    for (input, expected) in [
        ("echo one\nread x\nsecond\necho $x\n", "one\nsecond\n"),
        ("for i in 1 2\ndo echo $i \\\nx\ndone\nexit 3\necho never\n", "1 x\n2 x\n"),
        ("cat <<EOF\na\nEOF\necho b", "a\nb\n"),
    ] {
        let mut shell = Shell::new([], std::env::temp_dir());
        let output = Output::buffer();
        let mut io =
            Io { input: Input::bytes(input.as_bytes().to_vec()), output: output.clone(), errors: Output::Nothing };
        let status = shell.main(&[], &mut io);
        assert_eq!(String::from_utf8_lossy(&output.taken()), expected, "{input}");
        assert_eq!(status, if input.contains("exit 3") { 3 } else { 0 }, "{input}");
    }
}
