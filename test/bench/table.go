package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A row is one line of the result.
type row struct {
	what, ours, theirs, ratio, limit string
}

// A table collects rows and prints them as Markdown.
type table struct {
	rows  []row
	notes []string
}

// A bound is what a figure should keep to. Nothing fails when it does not:
// the table says so.
type bound struct {
	limit  float64
	atMost bool
}

func atMost(l float64) bound  { return bound{limit: l, atMost: true} }
func atLeast(l float64) bound { return bound{limit: l} }

// none is the bound of a figure that is only told.
var none = bound{}

func (b bound) holds(v float64) bool {
	return b == none || (b.atMost && v <= b.limit) || (!b.atMost && v >= b.limit)
}

// words is the cell of a limit beside the figure v.
func (b bound) words(v float64, unit string) string {
	if b == none {
		return ""
	}
	side := "at least"
	if b.atMost {
		side = "at most"
	}
	text := fmt.Sprintf("%s %s%s", side, number(b.limit), unit)
	if !b.holds(v) {
		text = "**missed**: " + text
	}
	return text
}

// number writes a figure with as many digits as mean something.
func number(v float64) string {
	switch {
	case v == float64(int64(v)) && v < 1e6:
		return fmt.Sprintf("%d", int64(v))
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// ratio adds a comparison whose figures have a unit.
func (t *table) ratio(what, peer, unit string, p pairs, b bound) {
	r := p.ratio()
	t.rows = append(t.rows, row{
		what: what,
		ours: number(median(p.a)) + " " + unit, theirs: fmt.Sprintf("%s %s (%s)", number(median(p.b)), unit, peer),
		ratio: fmt.Sprintf("%.2f (%.2f to %.2f)", r.value, r.low, r.high),
		limit: b.words(r.value, ""),
	})
}

// figure adds one that is compared with nothing.
func (t *table) figure(what, unit string, v float64, b bound) {
	t.rows = append(t.rows, row{what: what, ours: number(v) + " " + unit, limit: b.words(v, " "+unit)})
}

// note adds a sentence below the table.
func (t *table) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

// print writes the table as Markdown.
func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "| Figure | Auberge | Compared with | Ratio (95 %% interval) | Limit |\n|---|---|---|---|---|\n")
	for _, r := range t.rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", r.what, r.ours, r.theirs, r.ratio, r.limit)
	}
	fmt.Fprintln(w)
	for _, n := range t.notes {
		fmt.Fprintln(w, n)
	}
}

// machine describes where the figures come from.
func machine(accel string) string {
	var u unix.Utsname
	unix.Uname(&u)
	qemu, _ := exec.Command("qemu-system-x86_64", "--version").Output()
	version, _, _ := strings.Cut(string(qemu), "\n")
	return fmt.Sprintf("Measured on %s with %s, %d cores, %d GiB of memory, Linux %s, %s, accelerator %s, %s; load before: %s.",
		time.Now().Format(time.DateOnly), cpuModel(), runtime.NumCPU(), memoryGiB(), unix.ByteSliceToString(u.Release[:]),
		strings.TrimSpace(version), accel, runtime.Version(), load())
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for l := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func memoryGiB() uint64 {
	var i unix.Sysinfo_t
	unix.Sysinfo(&i)
	return (uint64(i.Totalram)*uint64(i.Unit) + 1<<29) >> 30
}

func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if len(f) == 0 {
		return "unknown"
	}
	return f[0]
}
