package core

import (
	"strings"
	"testing"
)

func TestParseParams(t *testing.T) {
	defaults := Params{RootDevice: "/dev/vda"}
	with := func(change func(*Params)) Params {
		p := defaults
		change(&p)
		return p
	}
	tests := map[string]struct {
		line string
		want Params
		err  string
	}{
		"nothing":                        {line: "", want: defaults},
		"what is not ours":               {line: "quiet console=ttyS0 rw auberge.later=1 maitred", want: defaults},
		"a writable root":                {line: "auberge.rootfs=rw", want: with(func(p *Params) { p.WritableRoot = true })},
		"the last value wins":            {line: "auberge.rootfs=rw auberge.rootfs=ro", want: defaults},
		"kernel vsock, and then not":     {line: "auberge.vsock=kernel quiet auberge.vsock=user\n", want: with(func(p *Params) { p.ReservedVsock = true })},
		"kernel vsock after all":         {line: "auberge.vsock=user auberge.vsock=kernel\n", want: with(func(p *Params) { p.ReservedVsock = true })},
		"kernel vsock":                   {line: "auberge.vsock=kernel\n", want: with(func(p *Params) { p.ReservedVsock = true })},
		"user vsock":                     {line: "auberge.vsock=user", want: defaults},
		"another port":                   {line: "maitred.listen_port=7000", want: with(func(p *Params) { p.ListenPort = 7000 })},
		"another disk":                   {line: "root=/dev/vdb", want: with(func(p *Params) { p.RootDevice = "/dev/vdb" })},
		"a hostname":                     {line: "hostname=penguin", want: with(func(p *Params) { p.Hostname = "penguin" })},
		"a quoted value":                 {line: `hostname="penguin"`, want: with(func(p *Params) { p.Hostname = "penguin" })},
		"a quoted word":                  {line: `"hostname=penguin"`, want: with(func(p *Params) { p.Hostname = "penguin" })},
		"spaces in quotes":               {line: `x="a auberge.rootfs=rw b" hostname=h`, want: with(func(p *Params) { p.Hostname = "h" })},
		"what follows -- is init's":      {line: "hostname=a -- hostname=b", want: with(func(p *Params) { p.Hostname = "a" })},
		"a value with an equals sign":    {line: "hostname=a=b", want: with(func(p *Params) { p.Hostname = "a=b" })},
		"a port that is none":            {line: "maitred.listen_port=x hostname=h", want: with(func(p *Params) { p.Hostname = "h" }), err: "maitred.listen_port=x: want a vsock port"},
		"port zero":                      {line: "maitred.listen_port=0", want: defaults, err: "want a vsock port"},
		"the port that means any":        {line: "maitred.listen_port=4294967295", want: defaults, err: "want a vsock port"},
		"a mode of the root that is not": {line: "auberge.rootfs=maybe", want: defaults, err: "want ro or rw"},
		"a vsock mode that is not":       {line: "auberge.vsock", want: defaults, err: "want user or kernel"},
		"a root that is no path":         {line: "root=UUID=12", want: defaults, err: "want a path below /dev"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseParams(tt.line)
			if got != tt.want {
				t.Errorf("ParseParams(%q) = %+v, want %+v", tt.line, got, tt.want)
			}
			switch {
			case tt.err == "" && err != nil:
				t.Errorf("ParseParams(%q): %v", tt.line, err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("ParseParams(%q): error %v, want one with %q", tt.line, err, tt.err)
			}
		})
	}
}

func FuzzParseParams(f *testing.F) {
	f.Add(`quiet root=/dev/vda x="a b" -- y`)
	f.Add(`"`)
	f.Add(`"=`)
	f.Fuzz(func(t *testing.T, line string) {
		p, _ := ParseParams(line)
		if !strings.HasPrefix(p.RootDevice, "/dev/") {
			t.Errorf("root device %q", p.RootDevice)
		}
	})
}
