package packagekit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

func variants(m map[string]any) map[string]dbus.Variant {
	v := map[string]dbus.Variant{}
	for k, x := range m {
		v[k] = dbus.MakeVariant(x)
	}
	return v
}

// changed is what PackageKit sends when properties change.
func changed(m map[string]any) *dbus.Signal {
	return &dbus.Signal{Name: propertiesIface + ".PropertiesChanged", Body: []any{transactionIface, variants(m), []string{}}}
}

func signal(member string, body ...any) *dbus.Signal {
	return &dbus.Signal{Name: transactionIface + "." + member, Body: body}
}

// usual is what the signals of a PackageKit look like.
var usual = []*dbus.Signal{
	signal("Package", uint32(1), "au-top;2.0;all;manual:local", "the top"),
	signal("Packages", [][]any{{uint32(2), "au-top;2.0;all;local", "the top"}, {uint32(1), "a;1;all;installed", ""}}),
	signal("Details", variants(map[string]any{
		"package-id": "au-top;2.0;all;local", "license": "MIT", "summary": "the top", "description": "Long.",
		"url": "https://example.org", "size": uint64(300000), "group": uint32(4),
	})),
	changed(map[string]any{"Status": uint32(statusDownload)}),
	changed(map[string]any{"Percentage": uint32(101), "Speed": uint32(0)}),
	signal("ErrorCode", uint32(8), "The following packages have unmet dependencies: a"),
	signal("Finished", uint32(2), uint32(300)),
	signal("Destroy"),
}

func TestTranscript(t *testing.T) {
	var said transcript
	for _, sig := range usual {
		said.take(sig)
	}
	want := transcript{
		packages: []Package{{"au-top;2.0;all;manual:local", true}, {"au-top;2.0;all;local", false}, {"a;1;all;installed", true}},
		details:  []Details{{"au-top;2.0;all;local", "MIT", "the top", "Long.", "https://example.org", 300000}},
		errors:   []string{"The following packages have unmet dependencies: a"},
		status:   statusDownload, finished: true, exit: 2,
	}
	if d := cmp.Diff(want, said, cmp.AllowUnexported(transcript{})); d != "" {
		t.Error(d)
	}
	if err := said.result(); err == nil || !strings.Contains(err.Error(), "unmet dependencies") {
		t.Errorf("result: %v", err)
	}
}

// A service of another form than PackageKit's changes nothing, or little.
func TestTranscriptOfStrangers(t *testing.T) {
	var said transcript
	for _, sig := range []*dbus.Signal{
		signal("Package"), signal("Package", "one", "au;1;all;x"), signal("Package", uint32(1), uint32(2)),
		signal("Package", uint32(1), "no id"), signal("Packages", []string{"a"}), signal("Packages", [][]any{{}, {uint32(1)}}),
		signal("Details"), signal("Details", "x"), signal("Details", variants(map[string]any{"package-id": uint32(1)})),
		signal("ErrorCode", "x"), signal("ErrorCode", uint32(1), uint32(2)), signal("ErrorCode", uint32(1), " \n"),
		signal("Finished"), signal("Finished", "yes"), {Name: "Finished", Body: []any{uint32(1)}},
		{Name: "org.example.Finished", Body: []any{uint32(1)}},
		{Name: propertiesIface + ".PropertiesChanged"},
		{Name: propertiesIface + ".PropertiesChanged", Body: []any{"org.example", variants(map[string]any{"Status": uint32(8)})}},
		{Name: propertiesIface + ".PropertiesChanged", Body: []any{[]string{"x"}, 1}},
		changed(map[string]any{"Status": "download", "Percentage": int64(5)}),
	} {
		said.take(sig)
	}
	if d := cmp.Diff(transcript{}, said, cmp.AllowUnexported(transcript{})); d != "" {
		t.Error(d)
	}
}

func TestTranscriptIsBounded(t *testing.T) {
	var said transcript
	long := strings.Repeat("ä", maxText)
	for i := range maxPackages + 10 {
		said.take(signal("Package", uint32(1), fmt.Sprintf("a;%d;all;x", i), ""))
		said.take(signal("ErrorCode", uint32(1), long))
	}
	said.take(signal("Details", variants(map[string]any{"package-id": "a;1;all;x", "description": long, "summary": long})))
	if len(said.packages) != maxPackages || len(said.errors) != maxErrors {
		t.Errorf("%d packages and %d errors are kept", len(said.packages), len(said.errors))
	}
	d := said.details[0]
	if len(d.Description) > maxText+3 || len(d.Summary) > maxWord+3 || len(said.errors[0]) > maxWord+3 || !utf8.ValidString(d.Summary) {
		t.Errorf("texts of %d, %d and %d bytes are kept", len(d.Description), len(d.Summary), len(said.errors[0]))
	}
}

func TestResult(t *testing.T) {
	for name, c := range map[string]struct {
		said transcript
		want string
	}{
		"success":         {transcript{finished: true, exit: exitSuccess}, ""},
		"success despite": {transcript{finished: true, exit: exitSuccess, errors: []string{"a"}}, ""},
		"cancelled":       {transcript{finished: true, exit: 3}, "cancelled"},
		"unknown":         {transcript{finished: true, exit: 99}, "99"},
		"dropped":         {transcript{gone: true}, "dropped"},
		"with a reason":   {transcript{finished: true, exit: 2, errors: []string{"a", "b"}}, "a; b"},
	} {
		err := c.said.result()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestProgressIsMonotonic(t *testing.T) {
	var p progress
	var said transcript
	var got []string
	for _, m := range []map[string]any{
		{"Percentage": uint32(50)}, // of something else
		{"Status": uint32(statusDownload)},
		{"Percentage": uint32(20)}, {"Percentage": uint32(10)}, {"Percentage": uint32(percentUnknown)}, {"Percentage": uint32(90)},
		{"Status": uint32(statusInstall)}, {"Percentage": uint32(30)},
		{"Status": uint32(statusDownload)}, {"Percentage": uint32(95)},
		{"Status": uint32(statusInstall), "Percentage": uint32(20)}, {"Percentage": uint32(40)}, {"Percentage": uint32(40)},
	} {
		said.take(changed(m))
		if phase, percent, further := p.take(&said, false); further {
			got = append(got, fmt.Sprint(int(phase), ":", percent))
		}
	}
	want := "1:0 1:20 1:90 2:0 2:30 2:40"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
	said.take(changed(map[string]any{"Status": uint32(statusRemove)}))
	if _, _, further := p.take(&said, false); further {
		t.Error("an installation reports a removal")
	}
}

func TestChoose(t *testing.T) {
	list := []Package{{"b;1;all;x", false}, {"a;1;amd64;installed", true}, {"a;2;amd64;debian", false}, {"a;3;amd64;debian", false}}
	for name, want := range map[string]string{"a": "a;2;amd64;debian", "b": "b;1;all;x", "c": ""} {
		if got := choose(list, name); got != want {
			t.Errorf("of %s %q is chosen, want %q", name, got, want)
		}
	}
	if got := choose(list[:2], "a"); got != "a;1;amd64;installed" {
		t.Errorf("of an installed package %q is chosen", got)
	}
}

func TestCheckID(t *testing.T) {
	for id, ok := range map[string]bool{
		"a;1;all;x": true, "a;;;": true, "": false, "a": false, ";1;all;x": false, "a;1;all;x;y": false,
		"a;1;all;" + strings.Repeat("x", maxWord): false, "a;1;all;\x00": false,
	} {
		if err := CheckID(id); (err == nil) != ok {
			t.Errorf("%q: %v", clip(id, 40), err)
		}
	}
}

// message is a signal as it comes over the bus.
func message(t testing.TB, sig *dbus.Signal) []byte {
	t.Helper()
	iface, member := split(sig.Name)
	m := &dbus.Message{
		Type: dbus.TypeSignal,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath("/1_a")),
			dbus.FieldInterface: dbus.MakeVariant(iface),
			dbus.FieldMember:    dbus.MakeVariant(member),
		},
		Body: sig.Body,
	}
	if iface == transactionIface && member == "Packages" {
		type row struct {
			Info        uint32
			ID, Summary string
		}
		m.Body = []any{[]row{{2, "au-top;2.0;all;local", "the top"}}}
	}
	if len(m.Body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(m.Body...))
	}
	var b bytes.Buffer
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What comes over the bus goes through the decoding of messages and of signals.
func FuzzSignal(f *testing.F) {
	for _, sig := range usual {
		f.Add(message(f, sig))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := dbus.DecodeMessage(bytes.NewReader(data))
		if err != nil {
			return
		}
		iface, _ := m.Headers[dbus.FieldInterface].Value().(string)
		member, _ := m.Headers[dbus.FieldMember].Value().(string)
		var said transcript
		for range 2 {
			said.take(&dbus.Signal{Name: iface + "." + member, Body: m.Body})
		}
		for _, p := range said.packages {
			if CheckID(p.ID) != nil {
				t.Errorf("a package with the id %q is kept", p.ID)
			}
		}
		for _, d := range said.details {
			if !utf8.ValidString(d.ID + d.License + d.Summary + d.Description + d.URL) {
				t.Errorf("a text is not valid: %+v", d)
			}
		}
		if said.percent > 100 {
			t.Errorf("%d percent", said.percent)
		}
		if said.over() && said.result() == nil && said.exit != exitSuccess {
			t.Error("success without success")
		}
	})
}
