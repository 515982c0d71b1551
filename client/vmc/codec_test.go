package vmc

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	godbus "github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus/dbustest"
)

// vmc runs the program with an input and returns its output, its errors and
// its exit code.
func vmc(t *testing.T, input string, args ...string) (string, string, int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(path, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out, errs bytes.Buffer
	code := Main(t.Context(), args, in, &out, &errs)
	return out.String(), errs.String(), code
}

// payloads are bytes that tools print in different ways.
var payloads = [][]byte{
	{}, {8, 1}, {0}, {0, 0}, {255, 10, 13}, []byte("hello"), []byte("hello\x00"), []byte(`" + \0`), []byte("] [ } {"),
	[]byte("a\"b\\c'"), []byte("a\"b\n'\t\x01\x80\x00"), []byte("he\x00llo\x00"), []byte("\n\x07termina"), []byte("(b'x',)"),
	[]byte("'\"\a\v\x7f\x00"), []byte("'\x00"), []byte("\"\x00"), []byte("\\\x00"), []byte("z7\x017\x00"), bytes.Repeat([]byte{0, 200}, 3000),
}

// What a tool is given reaches a service as it was, and what it prints of the
// answer is read as it was.
func TestToolsRoundTrip(t *testing.T) {
	bus := dbustest.Lax(t)
	conn := bus.Connect(t)
	if err := conn.Export(echo{}, "/echo", "test.Echo"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.RequestName("test.Echo", 0); err != nil {
		t.Fatal(err)
	}
	busctl := []string{"busctl", "--address=" + bus.Address}
	call := []string{"call", "test.Echo", "/echo", "test.Echo", "Echo"}
	for name, tool := range map[string]struct {
		form form
		argv []string
	}{
		"dbus-send": {formDBusSend, []string{"dbus-send", "--bus=" + bus.Address, "--print-reply", "--dest=test.Echo", "/echo", "test.Echo.Echo"}},
		"literal":   {formDBusSend, []string{"dbus-send", "--bus=" + bus.Address, "--print-reply=literal", "--dest=test.Echo", "/echo", "test.Echo.Echo"}},
		"busctl":    {formBusctl, append(busctl, call...)},
		"verbose":   {formBusctl, append(append(busctl, "--verbose"), call...)},
		"json":      {formBusctl, append(append(busctl, "--json=short"), call...)},
		"pretty":    {formBusctl, append(append(busctl, "--json=pretty"), call...)},
	} {
		t.Run(name, func(t *testing.T) {
			for _, p := range payloads {
				argv := append(append([]string{}, tool.argv...), strings.Fields(tool.form.write(p))...)
				out, err := exec.Command(argv[0], argv[1:]...).Output()
				if err != nil {
					t.Fatalf("%s: %v", strings.Join(argv, " "), err)
				}
				if got, err := readBytes(string(out), ""); err != nil || !bytes.Equal(got, p) {
					t.Errorf("%q came back as %q, %v; printed as\n%s", p, got, err, out)
				}
			}
		})
	}
}

type echo struct{}

func (echo) Echo(b []byte) ([]byte, *godbus.Error) { return b, nil }

// What other tools print, taken from them.
func TestReadBytes(t *testing.T) {
	for text, want := range map[string]string{
		"(@ay [],)":               "",
		"([byte 0x08, 0x01],)\n":  "\x08\x01",
		"[byte 0x08, 0x01]":       "\x08\x01",
		"(b'hello',)":             "hello\x00",
		"(b'',)":                  "\x00",
		`(b"a\"b\n'\t\001\200",)`: "a\"b\n'\t\x01\x80\x00",
		"/a/b: org.x.Y.Signal ([byte 0x0a, 0x01],)": "\n\x01",
		"/a/b: org.x.Y.Signal (b'q',)":              "q\x00",
		"array:byte:0x0a,7":                         "\n\x07",
		"array:byte:":                               "",
		"ay 0":                                      "",
		"  ay 2 8 1 \n":                             "\x08\x01",
		"0a07 7465":                                 "\n\x07te",
		"CgdUZXN0":                                  "\n\x07Test",
		"CgdUZXN0MQ==":                              "\n\x07Test1",
		"-_-_":                                      "\xfb\xff\xbf",
		"\n\x07termina":                             "\n\x07termina",
		"method return time=1.2 sender=:1.0\n   array of bytes [\n      08 01\n   ]\n": "\x08\x01",
		"signal time=1.2 sender=:1.0\n   array of bytes \"hi\"\n":                      "hi",
		`{"type":"signal","member":"X","payload":{"type":"ay","data":[[10,1]]}}`:       "\n\x01",
	} {
		if got, err := readBytes(text, ""); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	for text, says := range map[string]string{
		"":                                   "nothing to decode",
		" \n":                                "nothing to decode",
		"ay":                                 "number of bytes",
		"ay x":                               "number of bytes",
		"ay 3 8 1":                           "cut off",
		"ay 1 256":                           "no byte",
		"ay 1 8 1":                           "cut off",
		"ay 4294967296 1":                    "number of bytes",
		"x MESSAGE \"s\"":                    "neither hex",
		"array of bytes [ 08 0":              "cut off",
		`array of bytes "abc`:                "cut off",
		"array of bytes [ 8 ]":               "odd length",
		"method return time=1.2":             "result",
		"array [\n]\n array [\n]":            "more than one",
		"array of bytes \"a\"\n x":           "more than one",
		`{"type":"s","data":["a"]}`:          "not ay",
		`{"type":"ay","data":[[300]]}`:       "busctl",
		`{"type":"ay"`:                       "busctl",
		"MESSAGE \"ay\" {\n ARRAY \"y\" {\n": "cut off",
		"MESSAGE \"ay\" {\nARRAY \"y\" {\n};\n};\nMESSAGE \"ay\" {\nARRAY \"y\" {\n};\n};": "more than one",
		"MESSAGE \"s\" {\n};":                            "no bytes",
		"MESSAGE \"ay\" {\nARRAY \"y\" {\nBYTE 300;\n};": "no byte",
		"([byte 0x100],)":                                "no byte",
		`(b'\777',)`:                                     "no byte",
		`(b'x",)`:                                        "cut off",
		"Error org.x.Failed: no":                         "has failed",
		"Hello, world!":                                  "neither hex nor base64",
	} {
		if got, err := readBytes(text, ""); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %q, %v; want an error with %q", text, got, err, says)
		}
	}
}

func TestEncodeAndDecode(t *testing.T) {
	request := `{"name": "termina", "start_termina": true, "disks": [{"path": "/d é", "writable": true, "image_type": "DISK_IMAGE_QCOW2"}], "oem_strings": ["a", ""]}`
	want, errs, code := vmc(t, request, "encode", "--hex", "StartVm", "-")
	if code != 0 {
		t.Fatal(errs)
	}
	decoded := ""
	for _, f := range []string{"", "--busctl", "--dbus-send", "--gdbus", "--hex", "--base64", "--raw"} {
		args := []string{"encode", "StartVm", request}
		if f != "" {
			args = append(args, f)
		}
		words, errs, code := vmc(t, "", args...)
		if code != 0 || words == "" {
			t.Fatalf("encode %s: %d: %s", f, code, errs)
		}
		json, errs, code := vmc(t, words, "decode", "--request", "StartVm")
		if code != 0 {
			t.Fatalf("decode of %s: %d: %s", f, code, errs)
		}
		if decoded == "" {
			decoded = json
		}
		again, errs, code := vmc(t, json, "encode", "--hex", "StartVm", "-")
		if code != 0 || again != want || json != decoded {
			t.Errorf("%s: %d %s: came back as %s, want %s", f, code, errs, again, want)
		}
	}
}

func TestEncodeAndDecodeCommands(t *testing.T) {
	seed := "ay 8 8 1 18 1 97 18 1 98"          // images: "a", "b"
	newer := "ay 11 8 1 18 5 10 1 97 40 0 32 7" // images: VmDiskInfo{name "a", image_type 0}
	for _, test := range []struct {
		args     []string
		input    string
		code     int
		out, err string
	}{
		{args: []string{"encode", "StopVm", `{"name":"x"}`}, out: "ay 3 10 1 120\n"},
		{args: []string{"encode", "StopVm"}, out: "ay 0\n"},
		{args: []string{"encode", "--dbus-send", "StopVm"}, out: "array:byte:\n"},
		{args: []string{"encode", "DestroyDiskImage", `{"disk_path":"x"}`}, out: "ay 3 18 1 120\n"},
		{args: []string{"encode", "SuccessFailureResponse", `{"success":true}`}, out: "ay 2 8 1\n"},
		{args: []string{"encode", "vm_tools.concierge.VmInfo", `{"pid":1}`}, out: "ay 2 16 1\n"},
		{args: []string{"encode", "--raw", "StopVm", `{"name":"x"}`}, out: "\n\x01x"},
		{args: []string{"encode", "StopVm", "-"}, input: `{"name":"x"}`, out: "ay 3 10 1 120\n"},
		{args: []string{"encode", "StpVm"}, code: 2, err: "did you mean StopVm?"},
		{args: []string{"encode", "StopVm", `{"nam":"x"}`}, code: 2, err: "name, owner_id"},
		{args: []string{"encode", "StopVm", `{`}, code: 2, err: "StopVmRequest"},
		{args: []string{"encode", "--hex", "--raw", "StopVm"}, code: 2, err: "hex"},
		{args: []string{"encode"}, code: 2, err: "vmc encode --help"},
		{args: []string{"decode", "StopVm", "ay", "2", "8", "1"}, out: `"success": true`},
		{args: []string{"decode", "StopVm"}, input: "ay 2 8 1\n", out: `"success": true`},
		{args: []string{"decode", "StopVm", "--base64"}, input: "CAE=", out: `"success": true`},
		{args: []string{"decode", "StopVm", "--hex", "0801"}, out: `"success": true`},
		{args: []string{"decode", "StopVm", "--raw"}, out: `"success": false`},
		{args: []string{"decode", "VmStoppedSignal", "ay 2 32 1"}, out: "STOP_VM_REQUESTED"},
		{args: []string{"decode", "VmInfo", "ay 2 16 7"}, out: `"pid": 7`},
		{args: []string{"decode", "ListVmDisks", seed}, out: `"images": [
    "a",
    "b"
  ]`},
		{args: []string{"decode", "ListVmDisks", newer}, out: `"name": "a"`},
		{args: []string{"decode", "ListVmDisks", "ay 2 8 1"}, out: `"success": true`},
		{args: []string{"decode", "ListVmDisksResponse", newer}, out: `"image_type": "DISK_IMAGE_RAW"`},
		{args: []string{"decode", "StopVm"}, code: 1, err: "did the call fail?"},
		{args: []string{"decode", "StopVm", "ay 2 8"}, code: 1, err: "cut off"},
		{args: []string{"decode", "StopVm", "ay 1 8"}, code: 1, err: "no vm_tools.concierge.SuccessFailureResponse"},
		{args: []string{"decode", "VmStoppedSignl", "ay 0"}, code: 2, err: "did you mean VmStoppedSignal?"},
		{args: []string{"decode"}, code: 2},
	} {
		out, errs, code := vmc(t, test.input, test.args...)
		exact := len(test.args) > 0 && test.args[0] == "encode" && test.code == 0
		if code != test.code || exact && out != test.out || !strings.Contains(out, test.out) || !strings.Contains(errs, test.err) {
			t.Errorf("vmc %q: %d, %q, %q; want %d, %q, %q", test.args, code, out, errs, test.code, test.out, test.err)
		}
	}
}

func FuzzReadBytes(f *testing.F) {
	f.Add("ay 2 8 1", []byte{8, 1})
	f.Fuzz(func(t *testing.T, text string, b []byte) {
		readBytes(text, "") // must end, whatever it says
		readBytes(text, formHex)
		readBytes(text, formBase64)
		for _, f := range []form{formBusctl, formDBusSend, formGDBus} {
			if got, err := readBytes(f.write(b), ""); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: %q came back as %q, %v", f, b, got, err)
			}
		}
		for _, f := range []form{formHex, formBase64, formRaw} {
			if got, err := readBytes(f.write(b), f); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: %q came back as %q, %v", f, b, got, err)
			}
		}
	})
}
