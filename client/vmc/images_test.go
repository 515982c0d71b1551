package vmc

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/dbus/dbustest"
	"github.com/auberge-vm/auberge/policy"
)

func (f *fake) ListImages(context.Context, policy.Subject) ([]map[string]any, error) {
	return *f.images.Load(), nil
}

func (f *fake) UpdateImage(context.Context, policy.Subject) (map[string]any, error) {
	return (*f.images.Load())[0], nil
}

func (f *fake) RollbackImage(context.Context, policy.Subject) (map[string]any, error) {
	return nil, noImage{}
}

// noImage is an error with a name.
type noImage struct{}

func (noImage) Error() string        { return "there is no earlier image" }
func (noImage) BusErrorName() string { return dbus.ErrorNotFound }

func TestImageCommands(t *testing.T) {
	bus := dbustest.Lax(t)
	created := uint64(time.Date(2026, 11, 20, 12, 0, 0, 0, time.Local).UnixMicro())
	image := func(key string, current, packaged, previous bool, vms ...string) map[string]any {
		if vms == nil {
			vms = []string{}
		}
		return map[string]any{"key": key, "kernel": "6.12", "suite": "trixie", "created": created, "size": uint64(104 << 20),
			"current": current, "packaged": packaged, "previous": previous, "stored": true, "vms": vms, "changed": packaged}
	}
	f := &fake{}
	f.setImages(image("aa11", true, true, false, "7/web", "7/\x1b[2Jdb"), image("bb22", false, false, true),
		map[string]any{"key": "cc33", "vms": []string{"7/old"}})
	f.serve(t, bus, dbus.Options{})
	out, errs, code := vmc(t, "", "image", "list", "--bus", bus.Address)
	want := strings.Join([]string{
		"KEY   CREATED              KERNEL  SUITE   SIZE     USE                VMS",
		"aa11  2026-11-20 12:00:00  6.12    trixie  104 MiB  current, packaged  7/web, 7/?[2Jdb",
		"bb22  2026-11-20 12:00:00  6.12    trixie  104 MiB  previous           -",
		"cc33  -                    -       -       -        removed            7/old", ""}, "\n")
	if code != 0 || out != want {
		t.Errorf("%d, %s\n%s\nwant\n%s", code, errs, out, want)
	}
	if out, _, code := vmc(t, "", "image", "list", "--json", "--bus", bus.Address); code != 0 || !strings.Contains(out, `"key": "bb22"`) || !strings.Contains(out, `"7/web"`) {
		t.Errorf("%d, %s", code, out)
	}
	if out, _, code := vmc(t, "", "image", "update", "--bus", bus.Address); code != 0 || out != "Image aa11 (kernel 6.12) is in use for VMs that start from now on.\n" {
		t.Errorf("%d, %s", code, out)
	}
	kept := image("aa11", true, true, false, "7/web", "7/\x1b[2Jdb")
	kept["changed"] = false
	f.setImages(kept)
	if out, _, code := vmc(t, "", "image", "update", "--bus", bus.Address); code != 0 || out != "Image aa11 (kernel 6.12) is in use already.\n" {
		t.Errorf("%d, %s", code, out)
	}
	if out, _, code := vmc(t, "", "image", "update", "--json", "--bus", bus.Address); code != 0 || !strings.Contains(out, `"changed": false`) {
		t.Errorf("%d, %s", code, out)
	}
	if _, errs, code := vmc(t, "", "image", "rollback", "--bus", bus.Address); code != ExitNotFound || !strings.Contains(errs, "no earlier image") {
		t.Errorf("%d, %s", code, errs)
	}
	f.setImages()
	if out, _, code := vmc(t, "", "image", "list", "--bus", bus.Address); code != 0 || !strings.Contains(out, "install the package") {
		t.Errorf("%d, %s", code, out)
	}
}
