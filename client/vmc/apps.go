package vmc

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/protos/appspb"
	ct "github.com/auberge-vm/auberge/protos/ciceronepb"
)

func (a *app) appCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "app",
		Short:             "List and launch the applications of a container, and fetch their icons",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	list := &cobra.Command{
		Use:               "list VM [CONTAINER]",
		Short:             "List the applications of a container",
		Example:           "  vmc app list termina penguin",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: a.completeContainer(),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			name := defaultContainer
			if len(args) == 2 {
				name = args[1]
			}
			return a.listApps(ctx, s.with(cicerone()), args[0], name)
		}),
	}
	var scaled bool
	launch := &cobra.Command{
		Use:   "launch VM [CONTAINER] APPLICATION [FILE...]",
		Short: "Launch an application of a container",
		Long: "Launch the APPLICATION with that id, as \"vmc app list\" shows it. Each FILE is an absolute\n" +
			"path in the container.",
		Example:           "  vmc app launch termina penguin org.gnome.gedit /home/alice/notes.txt",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeApplication(),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			container, id, files := whichApp(args[1:])
			for _, f := range files {
				if !strings.HasPrefix(f, "/") {
					return withCode(ExitUsage, fmt.Errorf("%q is no absolute path in the container", f))
				}
			}
			req := &ct.LaunchContainerApplicationRequest{VmName: args[0], ContainerName: container, OwnerId: a.owner, DesktopFileId: id, Files: files}
			if scaled {
				req.DisplayScaling = ct.LaunchContainerApplicationRequest_SCALED
			}
			var resp ct.LaunchContainerApplicationResponse
			if err := s.with(cicerone()).call(ctx, "LaunchContainerApplication", req, &resp); err != nil {
				return err
			}
			if !resp.Success {
				return failed("launch "+id, reason(resp.FailureReason))
			}
			if a.json {
				return a.printJSON(&resp)
			}
			return nil
		}),
	}
	launch.Flags().BoolVar(&scaled, "scaled", false, "for a display of low density")
	var size, scale int32
	var output string
	icon := &cobra.Command{
		Use:   "icon VM [CONTAINER] APPLICATION --output FILE",
		Short: "Fetch the icon of an application",
		Long: "Fetch the icon of the APPLICATION, a PNG or SVG image, and write it to FILE; to standard\n" +
			"output with \"-\". Prints which of both it is.",
		Example:           "  vmc app icon termina penguin org.gnome.gedit --size 64 --output gedit.png",
		Args:              cobra.RangeArgs(2, 3),
		ValidArgsFunction: a.completeApplication(),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			container, id, _ := whichApp(args[1:])
			return a.icon(ctx, s.with(cicerone()), &ct.ContainerAppIconRequest{VmName: args[0], ContainerName: container, OwnerId: a.owner,
				DesktopFileIds: []string{id}, Size: size, Scale: scale}, output)
		}),
	}
	f := icon.Flags()
	f.Int32Var(&size, "size", 48, "width and height, `PIXELS` at scale 1")
	f.Int32Var(&scale, "scale", 1, "the display's `SCALE`")
	f.StringVarP(&output, "output", "o", "", "the `FILE` to write")
	if err := icon.MarkFlagRequired("output"); err != nil {
		panic(err)
	}
	for _, name := range []string{"size", "scale"} {
		completeFlag(icon, name, words())
	}
	cmd.AddCommand(list, launch, icon)
	return cmd
}

// whichApp reads [CONTAINER] APPLICATION [FILE...], where files are absolute
// paths, and nothing else is.
func whichApp(args []string) (container, id string, files []string) {
	if len(args) > 1 && !strings.HasPrefix(args[1], "/") {
		return args[0], args[1], args[2:]
	}
	return defaultContainer, args[0], args[1:]
}

func (a *app) applications(ctx context.Context, s *session, vm, container string) (*appspb.ApplicationList, error) {
	var data []byte
	if err := s.plain(ctx, "ListApplications", []any{vm, a.owner, container}, &data); err != nil {
		return nil, err
	}
	var list appspb.ApplicationList
	if err := proto.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("ListApplications: the answer cannot be read: %w", err)
	}
	return &list, nil
}

func (a *app) listApps(ctx context.Context, s *session, vm, container string) error {
	list, err := a.applications(ctx, s, vm, container)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(list)
	}
	slices.SortFunc(list.Apps, func(x, y *appspb.App) int { return cmp.Compare(x.DesktopFileId, y.DesktopFileId) })
	t := a.table("ID", "NAME", "PACKAGE")
	for _, app := range list.Apps {
		pkg, _, _ := strings.Cut(app.PackageId, ";")
		t.row(app.DesktopFileId, localeName(app.Name), cmp.Or(pkg, "-"))
	}
	return t.end()
}

// localeName is a name in the caller's language, or as it is by default.
func localeName(name *appspb.App_LocaleString) string {
	locale := cmp.Or(os.Getenv("LC_ALL"), os.Getenv("LC_MESSAGES"), os.Getenv("LANG"))
	locale, _, _ = strings.Cut(locale, ".")
	language, _, _ := strings.Cut(locale, "_")
	best, rank := "-", 3
	for _, v := range name.GetValues() {
		if at := slices.Index([]string{locale, language, ""}, v.Locale); at >= 0 && at < rank {
			best, rank = v.Value, at
		}
	}
	return best
}

func (a *app) icon(ctx context.Context, s *session, req *ct.ContainerAppIconRequest, output string) error {
	var resp ct.ContainerAppIconResponse
	if err := s.call(ctx, "GetContainerAppIcon", req, &resp); err != nil {
		return err
	}
	id := req.DesktopFileIds[0]
	if len(resp.Icons) == 0 || len(resp.Icons[0].Icon) == 0 {
		return withCode(ExitNotFound, fmt.Errorf("%s has no icon in %s of that size, nor is there another one to take for it; \"vmc app list\" shows the applications", id, req.ContainerName))
	}
	found := resp.Icons[0]
	if output == "-" {
		_, err := a.out.Write(found.Icon)
		return err
	}
	if err := os.WriteFile(output, found.Icon, 0o644); err != nil {
		return withCode(ExitFailed, fmt.Errorf("write the icon: %w", err))
	}
	if a.json {
		return a.printValue(map[string]any{"desktop_file_id": id, "format": found.Format.String(), "bytes": len(found.Icon)})
	}
	fmt.Fprintln(a.out, found.Format)
	return nil
}
