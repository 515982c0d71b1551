package vmc

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) imageCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "Show which guest images there are, and change which one new VMs get",
		Long: "A guest image comes as a package of the host. vm_concierge takes a copy of it into use, so\n" +
			"that VMs which run keep theirs when another one is installed, and so that one can go back.",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(a.imageListCommand(), a.imageUpdateCommand(), a.imageRollbackCommand())
	return c
}

func (a *app) imageListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List guest images, the one that new VMs get first",
		Long: "List guest images. The current one is what new VMs get, the packaged one what \"vmc image\n" +
			"update\" would take into use, the previous one what \"vmc image rollback\" would go back to.\n" +
			"VMS are yours that run an image, for root everybody's.",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: a.withSession(func(ctx context.Context, s *session, _ []string) error {
			var images []dict
			if err := s.plain(ctx, "ListImages", nil, &images); err != nil {
				return err
			}
			if a.json {
				return a.printValue(map[string]any{"images": plainValue(images)})
			}
			return a.printImages(images)
		}),
	}
}

func (a *app) imageUpdateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "update",
		Short: "Take the packaged guest image into use for new VMs",
		Long: "Take the guest image that is installed as a package into use. VMs that run keep theirs\n" +
			"until they are started again. This is an administrator's right.",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: a.withSession(func(ctx context.Context, s *session, _ []string) error {
			return a.changeImage(ctx, s, "UpdateImage", "is in use already", "is in use for VMs that start from now on")
		}),
	}
}

func (a *app) imageRollbackCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rollback",
		Short: "Go back to the guest image that was in use before",
		Long: "Go back to the guest image that was in use before. It stays until \"vmc image update\", or\n" +
			"until another image is packaged. VMs that run keep theirs until they are started again. This\n" +
			"is an administrator's right.",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: a.withSession(func(ctx context.Context, s *session, _ []string) error {
			return a.changeImage(ctx, s, "RollbackImage", "is in use", "is in use again, for VMs that start from now on")
		}),
	}
}

func (a *app) changeImage(ctx context.Context, s *session, method, same, other string) error {
	var image dict
	if err := s.plain(ctx, method, nil, &image); err != nil {
		return err
	}
	if a.json {
		return a.printValue(plainValue(image))
	}
	if !isSet(image, "changed") {
		other = same
	}
	fmt.Fprintf(a.out, "Image %s (kernel %s) %s.\n", printable(field(image, "key")), printable(field(image, "kernel")), other)
	return nil
}

func (a *app) printImages(images []dict) error {
	if len(images) == 0 {
		fmt.Fprintln(a.out, "No guest images: install the package with the guest image.")
		return nil
	}
	t := a.table("KEY", "CREATED", "KERNEL", "SUITE", "SIZE", "USE", "VMS")
	for _, i := range images {
		var use []string
		for _, word := range []string{"current", "packaged", "previous"} {
			if isSet(i, word) {
				use = append(use, word)
			}
		}
		if _, known := i["current"]; !known {
			use = append(use, "removed")
		}
		size := "-"
		if n, ok := i["size"].Value().(uint64); ok {
			size = bytesWord(n)
		}
		vms, _ := i["vms"].Value().([]string)
		t.row(field(i, "key"), moment(i, "created"), field(i, "kernel"), field(i, "suite"), size,
			orDash(strings.Join(use, ", ")), orDash(strings.Join(vms, ", ")))
	}
	return t.end()
}

func isSet(d dict, key string) bool {
	on, _ := d[key].Value().(bool)
	return on
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
