// Buttons for what the keys of a slide do, at the edge of the image.

export interface Tool {
  name: string;
  key: string;
  /** A short text, or the path of an icon of 16 × 16. */
  text?: string;
  icon?: string;
  on?: boolean;
  onClick: () => void;
}

export const ICONS = {
  whole: "M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4M5 5h6v6H5z",
  rotate: "M13 8a5 5 0 1 1-2-4M11 1v3H8",
  flip: "M8 1v14M6 4L2 12h4zM10 4l4 8h-4z",
  measure: "M1 11L11 1l4 4L5 15zM4 8l2 2M6.500 5.500l1 1M9 3l2 2",
  gallery: "M2 2h5v5H2zM9 2h5v5H9zM2 9h5v5H2zM9 9h5v5H9z",
  screen: "M1 5V1h4M11 1h4v4M15 11v4h-4M5 15H1v-4",
  link: "M7 9l2-2M6 5l2-2a3 3 0 0 1 5 5l-2 2M10 11l-2 2a3 3 0 0 1-5-5l2-2",
};

export function Tools({ tools }: { tools: Tool[] }) {
  return (
    <div class="tools" role="toolbar" aria-label="Tools" aria-orientation="vertical">
      {tools.map(({ name, key, text, icon, on, onClick }) => (
        <button key={name} aria-label={name} aria-pressed={on} title={`${name} (${key})`} onClick={onClick}>
          {icon ? <svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true"><path d={icon} /></svg> : text}
        </button>
      ))}
    </div>
  );
}

export function fullScreen(): void {
  void (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen());
}
