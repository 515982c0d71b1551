package packagekit

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/godbus/dbus/v5"
)

// Names on the bus.
const (
	busName          = "org.freedesktop.PackageKit"
	daemonPath       = "/org/freedesktop/PackageKit"
	transactionIface = "org.freedesktop.PackageKit.Transaction"
	propertiesIface  = "org.freedesktop.DBus.Properties"
)

// Numbers of PackageKit (PkStatusEnum, PkExitEnum, PkInfoEnum, PkFilterEnum).
const (
	statusRemove   = 6
	statusDownload = 8
	statusInstall  = 9

	exitSuccess = 1

	infoInstalled = 1

	filterInstalled uint64 = 1 << 2
	filterNewest    uint64 = 1 << 16
	filterArch      uint64 = 1 << 18
	filterNotSource uint64 = 1 << 21

	percentUnknown = 101
)

// Bounds of what is kept of a transaction's signals.
const (
	maxPackages = 4096
	maxErrors   = 16
	maxText     = 64 << 10 // of a description
	maxWord     = 4 << 10  // of anything else
)

// exits are the ways in which a transaction ends that are not success.
var exits = map[uint32]string{
	2:  "it failed",
	3:  "it was cancelled",
	4:  "a key has to be accepted first",
	5:  "a license has to be accepted first",
	6:  "it was killed",
	7:  "a medium has to be changed",
	8:  "a package is not trusted",
	9:  "it was cancelled for something more important",
	10: "it was skipped",
	11: "the packages have to be repaired first (sudo apt --fix-broken install)",
}

// A Package is one of a transaction's list.
type Package struct {
	ID        string // name;version;architecture;data
	Installed bool
}

// Name is the first part of the id.
func (p Package) Name() string {
	name, _, _ := strings.Cut(p.ID, ";")
	return name
}

// Details is what there is to know of a package.
type Details struct {
	ID          string
	License     string
	Summary     string
	Description string
	URL         string
	Size        uint64 // bytes
}

// CheckID refuses what is no package id.
func CheckID(id string) error {
	parts := strings.Split(id, ";")
	if len(parts) != 4 || parts[0] == "" || len(id) > maxWord || strings.ContainsAny(id, "\x00\n") {
		return fmt.Errorf("%q is no package id, which is name;version;architecture;data", clip(id, 200))
	}
	return nil
}

// clip makes a text short and valid.
func clip(text string, most int) string {
	if len(text) > most {
		text = text[:most]
		for len(text) > 0 && !utf8.RuneStart(text[len(text)-1]) {
			text = text[:len(text)-1]
		}
		if len(text) > 0 {
			text = text[:len(text)-1]
		}
		text += "..."
	}
	return strings.ToValidUTF8(text, "?")
}

// A transcript is what a transaction has said so far.
type transcript struct {
	packages []Package
	details  []Details
	errors   []string
	percent  uint32
	status   uint32
	finished bool
	exit     uint32
	gone     bool // ended without saying how
}

// take adds a signal of the transaction. What has another form than it should
// is passed over.
func (t *transcript) take(sig *dbus.Signal) {
	iface, member := split(sig.Name)
	switch {
	case iface == propertiesIface && member == "PropertiesChanged":
		t.properties(sig.Body)
	case iface != transactionIface:
	case member == "Package":
		if len(sig.Body) >= 2 {
			t.addPackage(sig.Body[0], sig.Body[1])
		}
	case member == "Packages":
		if len(sig.Body) >= 1 {
			t.addPackages(sig.Body[0])
		}
	case member == "Details":
		if len(sig.Body) >= 1 {
			t.addDetails(sig.Body[0])
		}
	case member == "ErrorCode":
		if len(sig.Body) >= 2 {
			t.addError(sig.Body[1])
		}
	case member == "Finished":
		if exit, ok := first[uint32](sig.Body); ok && !t.finished {
			t.finished, t.exit = true, exit
		}
	case member == "Destroy":
		t.gone = !t.finished
	}
}

func split(name string) (iface, member string) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

func first[T any](body []any) (v T, ok bool) {
	if len(body) == 0 {
		return v, false
	}
	v, ok = body[0].(T)
	return v, ok
}

func (t *transcript) addPackage(info, id any) {
	kind, ok1 := info.(uint32)
	name, ok2 := id.(string)
	if !ok1 || !ok2 || len(t.packages) >= maxPackages || CheckID(name) != nil {
		return
	}
	// The upper half of info is the severity of an update.
	t.packages = append(t.packages, Package{ID: strings.ToValidUTF8(name, "?"), Installed: kind&0xffff == infoInstalled})
}

func (t *transcript) addPackages(list any) {
	rows, _ := list.([][]any)
	for _, row := range rows {
		if len(row) >= 2 {
			t.addPackage(row[0], row[1])
		}
	}
}

func (t *transcript) addDetails(data any) {
	values, ok := data.(map[string]dbus.Variant)
	if !ok || len(t.details) >= maxPackages {
		return
	}
	text := func(key string, most int) string {
		s, _ := values[key].Value().(string)
		return clip(s, most)
	}
	d := Details{
		ID:          text("package-id", maxWord),
		License:     text("license", maxWord),
		Summary:     text("summary", maxWord),
		Description: text("description", maxText),
		URL:         text("url", maxWord),
	}
	if CheckID(d.ID) != nil {
		return
	}
	switch size := values["size"].Value().(type) {
	case uint64:
		d.Size = size
	case uint32:
		d.Size = uint64(size)
	}
	t.details = append(t.details, d)
}

func (t *transcript) addError(text any) {
	s, ok := text.(string)
	if !ok || len(t.errors) >= maxErrors {
		return
	}
	if s = strings.TrimSpace(clip(s, maxWord)); s != "" {
		t.errors = append(t.errors, s)
	}
}

func (t *transcript) properties(body []any) {
	if len(body) < 2 || body[0] != any(transactionIface) {
		return
	}
	changed, _ := body[1].(map[string]dbus.Variant)
	// How far an earlier status was says nothing of this one.
	if v, ok := changed["Status"].Value().(uint32); ok && v != t.status {
		t.status, t.percent = v, 0
	}
	if v, ok := changed["Percentage"].Value().(uint32); ok {
		if v >= percentUnknown {
			v = 0
		}
		t.percent = v
	}
}

// over says whether nothing more is to come.
func (t *transcript) over() bool { return t.finished || t.gone }

// result says why the transaction has not done what it was to.
func (t *transcript) result() error {
	if t.finished && t.exit == exitSuccess {
		return nil
	}
	if len(t.errors) > 0 {
		return fmt.Errorf("PackageKit: %s", strings.Join(t.errors, "; "))
	}
	if t.gone {
		return fmt.Errorf("PackageKit dropped the transaction without a result; its journal may say why (sudo journalctl -u packagekit)")
	}
	if why, ok := exits[t.exit]; ok {
		return fmt.Errorf("PackageKit: %s, without a reason", why)
	}
	return fmt.Errorf("PackageKit: it ended with the unknown code %d", t.exit)
}
